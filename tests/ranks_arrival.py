"""Run by ranks of test_clock_sync.py: collectives after barriers, one rank late on purpose, clocks probed on the way.

torchrun --nproc-per-node 4 tests/ranks_arrival.py OUT --ops all --late 0.02 --trials 4
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from assay.clock import now
from assay.clock_sync import Alignment
from assay.options.base import ScriptOptions, validate
from assay.ranks import Session, session

Call = Callable[[torch.Tensor, torch.Tensor, int, int], None]

# torch 2.13 renamed these two and warns at every use of the old names; 2.6 knows only the old ones.
gather_whole = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
scatter_sum = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def move(whole: torch.Tensor, part: torch.Tensor, rank: int, world: int) -> None:
    if rank == 0:
        dist.send(whole, 1)
    elif rank == 1:
        dist.recv(whole, 0)


def exchange(whole: torch.Tensor, part: torch.Tensor, rank: int, world: int) -> None:
    waiting = dist.isend(part, (rank + 1) % world)
    dist.recv(whole[: part.numel()], (rank - 1) % world)
    assert waiting is not None
    waiting.wait()


# Plain calls of torch.distributed: what is tested is attribution, whatever moves the bytes.
OPS: dict[str, Call] = {
    "all_reduce": lambda whole, part, rank, world: void(dist.all_reduce(whole)),
    "all_gather": lambda whole, part, rank, world: void(gather_whole(whole, part)),
    "reduce_scatter": lambda whole, part, rank, world: void(scatter_sum(part, whole)),
    "all_to_all": lambda whole, part, rank, world: void(dist.all_to_all_single(torch.empty_like(whole), whole)),
    "broadcast": lambda whole, part, rank, world: void(dist.broadcast(whole, 0)),
    "reduce": lambda whole, part, rank, world: void(dist.reduce(whole, 0)),
    "gather": lambda whole, part, rank, world: void(dist.gather(part, list(whole.chunk(world)) if not rank else None)),
    "scatter": lambda whole, part, rank, world: void(
        dist.scatter(part, list(whole.chunk(world)) if not rank else None)
    ),
    "pt2pt": move,
    "ring": exchange,
    "barrier": lambda whole, part, rank, world: void(dist.barrier()),
}


def void(result: object) -> None:
    """Drop what a call returns: without async_op it has been awaited."""


def measure(here: Session, args: argparse.Namespace, op: str, trial: int) -> None:
    """`calls` calls, each after a barrier; one rank sleeps between the two where it is to be late."""
    world, call = here.world, OPS[op]
    part = torch.zeros(args.bytes // 4 // world.size)
    whole = torch.zeros(part.numel() * world.size)
    taking_part = 2 if op == "pt2pt" else world.size
    late = trial % taking_part if args.late and trial >= args.clean else -1
    entries, exits = [], []
    for _ in range(args.calls):
        world.barrier()
        if world.rank == late:
            time.sleep(args.late)
        entries.append(now())
        call(whole, part, world.rank, world.size)
        exits.append(now())
    if world.rank >= taking_part:
        return
    tags = {"op": op, "bytes": args.bytes, "dtype": "float32", "backend": "gloo", "world": world.size}
    for metric, samples in (("call_entry", entries), ("call_exit", exits)):
        here.recorder.block(metric, "s", samples, {**tags, "trial": trial})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--ops", default="all")
    parser.add_argument("--late", type=float, default=0.0, help="seconds by which rank (trial mod ranks) is late")
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--clean", type=int, default=0, help="first trials in which nobody is late")
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--bytes", type=int, default=16384)
    args = parser.parse_args()
    ops = list(OPS) if args.ops == "all" else args.ops.split(",")
    with session(validate(ScriptOptions, {"device": "cpu", "out": args.out}), "tests/ranks_arrival") as here:
        clocks = Alignment(here.world, here.recorder)
        for trial in range(args.trials):
            for op in ops:
                measure(here, args, op, trial)
            clocks.refresh()
        clocks.probe()


if __name__ == "__main__":
    main()
