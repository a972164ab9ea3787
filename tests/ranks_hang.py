"""Run by torchrun from test_beacon.py: ranks that measure one size; in the next, rank 1 is stopped before iteration 7.

python -m torch.distributed.run --nproc-per-node 3 tests/ranks_hang.py OUT LIMIT
"""

import os
import platform
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from assay.clock import now
from assay.hang_watch import answer_stack_requests, beacon_of
from assay.record import Header
from assay.recorder import Recorder
from assay.world import World

SIZES = ((1024, 20), (4096, 100_000))  # bytes, iterations


class GlooWorld(World):
    """A world that knows torch.distributed only."""

    def gather(self, item: object) -> list[object]:
        items: list[object] = [None] * self.size
        dist.all_gather_object(items, item)
        return items


def main() -> None:
    out, limit = Path(sys.argv[1]), float(sys.argv[2])
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    world = GlooWorld(rank, size, rank, size, "gloo", (platform.node(),) * size, True)
    header = Header(
        rank, size, rank, size, platform.node(), os.getpid(), "", "cpu", "", "gloo", "tests", now(), time.time()
    )
    answer_stack_requests(out, rank)
    recorder = Recorder(out / f"rank-{rank:05d}.jsonl", header)
    with beacon_of(world, out, limit) as beacon:
        cell = beacon.cell
        for count, iterations in SIZES:
            tensor = torch.ones(count // 4)
            entries = []
            beacon.phase("all_reduce", count, "call by call")
            for k in range(iterations):
                if (rank, count, k) == (1, 4096, 7):
                    os.kill(os.getpid(), signal.SIGSTOP)
                cell[0] = 2 * k + 1
                entries.append(now())
                dist.all_reduce(tensor)
                cell[0] = 2 * k + 2
            recorder.block("call_entry", "s", entries, {"op": "all_reduce", "bytes": count})
    recorder.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
