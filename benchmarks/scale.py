"""What grows with the ranks, the files and the cases, and how fast: the figures of docs/scale.md.

    python -m benchmarks.scale                       # all of it, about 5 minutes on 2 cores
    python -m benchmarks.scale plan start scoring    # some parts: plan, start, mesh, rendezvous, records, scoring
    python -m benchmarks.scale start --ranks 16

Must reach: `assay plan` of 1,024 hosts × 8 ranks in 2 s, the rendered files of 1,000 cases in 5 s, and nothing that is
quadratic in ranks. Ranks are real processes on this host that meet over gloo; they name 8 of themselves a host. What is
larger than that is simulated: the same messages are packed, and counted, without being sent.
"""

import argparse
import math
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined] # documented, but re-exported implicitly

import assay.world
from assay import machine
from assay.channel import packed
from assay.estimates import median_interval
from assay.launchers.ports import free_port
from assay.options import CommsOptions
from assay.ranks import session
from assay.record import Header, encode_block
from assay.recorder import FLUSH_SECONDS, Recorder
from assay.results import evaluate
from benchmarks.reading import make_run

PLAN_LIMIT, FILES_LIMIT = 2.0, 5.0
PER_HOST = 8
FAR = (80, 800, 8_000, 80_000)  # ranks of 10, 100, 1,000 and 10,000 hosts

SUITE = """assay: 1
name: scale
description: many ranks, many cases
limits: false
doctor: false
cases:
"""
CASE = (
    "  - {{name: case-{number:04d}, script: comms/bench, world: {world}, options: {{ops: all_reduce, size: 64MiB}}}}\n"
)


def row(what: str, where: str, cost: str, method: str) -> None:
    """One line of the table."""
    print(f"| {what} | {where} | {cost} | {method} |", flush=True)


def seconds(times: Sequence[float], limit: float | None = None) -> str:
    """The median with its interval, or with the range where samples are too few for one; against a limit."""
    estimate = median_interval(times)
    low, high = estimate.low or min(times), estimate.high or max(times)
    word = (
        ""
        if limit is None
        else f", limit {limit:g} s: " + ("holds" if high <= limit else "fails" if low > limit else "undecided")
    )
    return f"{estimate.value:.3g} s [{low:.3g}, {high:.3g}]{word}"


def plan(args: argparse.Namespace) -> None:
    """`assay plan` as a process of its own: one case of 8,192 ranks, and 1,000 such cases."""
    for cases, limit in ((1, PLAN_LIMIT), (1000, FILES_LIMIT)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scale.yaml"
            text = "".join(CASE.format(number=number, world=1024 * PER_HOST) for number in range(cases))
            path.write_text(SUITE + text)
            argv = [sys.executable, "-m", "assay", "plan", str(path), "--launcher", "slurm", "-n", str(PER_HOST)]
            times, worked = [], []
            for _ in range(args.runs):
                begun, before = time.monotonic(), core_seconds()
                done = subprocess.run(argv, capture_output=True, text=True, check=False)
                times.append(time.monotonic() - begun)
                worked.append(core_seconds() - before)
                if done.returncode:
                    row("`assay plan`", f"{cases} cases", "NA", f"refused: {done.stderr.strip().splitlines()[-1]}")
                    return
        where = f"{cases} case{'s' if cases > 1 else ''} of 1,024 × {PER_HOST} ranks"
        method = f"wall clock of {args.runs} processes; of a core they took {seconds(worked)}"
        row("`assay plan`, job files printed", where, seconds(times, limit), method)


def core_seconds() -> float:
    """What processes that were waited for have had of a core: beside others, wall clock tells of those too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one_rank(told: Connection, rank: int, size: int, port: int, meshed: bool) -> None:
    """Start as a script of ours does, and tell (seconds, bytes heard, connections to other ranks)."""
    host, clock = f"node{rank // PER_HOST:05d}", f"boot-of-host-{rank // PER_HOST:05d}-0123456789"
    platform.node, machine.clock_id = lambda: host, lambda: clock
    assay.world.MOST_MESHED = size if meshed else 0
    heard = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Any, *rest: Any) -> Any:
            nonlocal heard
            heard += tensor.nbytes
            return function(tensor, *rest)

        return call

    dist.recv, dist.broadcast = counted(dist.recv), counted(dist.broadcast)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    begun = time.monotonic()
    with session(CommsOptions(device="cpu", join_timeout=300.0), "benchmarks/scale") as here:
        took = time.monotonic() - begun
        here.world.barrier()
        connections = psutil.Process().net_connections("tcp")
        links = [one for one in connections if one.status == psutil.CONN_ESTABLISHED]
        told.send((took, heard, sum(1 for one in links if port not in (one.laddr.port, one.raddr.port))))
        here.world.barrier()


def start_world(size: int, *, meshed: bool) -> list[tuple[float, int, int]]:
    """What `one_rank` tells, of every rank. Raises RuntimeError if a rank is silent for 300 s."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["assay.ranks", "assay.options", "torch.distributed"])
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    port = free_port()
    ranks = [
        context.Process(target=one_rank, args=(told, rank, size, port, meshed)) for rank, (_, told) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    try:
        if not all(heard.poll(300) for heard, _ in pipes):
            raise RuntimeError(f"a rank of {size} is silent")
        return [heard.recv() for heard, _ in pipes]
    finally:
        for process in ranks:
            process.join(30)
            process.kill()


def doubling(most: int) -> Iterator[int]:
    """2, 4, 8 … up to `most`."""
    size = 2
    while size <= most:
        yield size
        size *= 2


def start_bytes(size: int) -> tuple[int, int, int]:
    """Bytes heard at the start by a leaf of the tree, by rank 0, and by each rank if all told all.

    The messages of `_world` and of the check of options: hosts and clocks as runs, rank 0's options, one number.
    """
    hosts = [
        (packed(told_by(host)), min(PER_HOST, size - first)) for host, first in enumerate(range(0, size, PER_HOST))
    ]
    options = packed(CommsOptions(device="cpu", join_timeout=300.0).model_dump(mode="json"))
    number, length = 8, 8
    leaf = length + len(packed(hosts)) + length + len(options) + number
    climbed = sum(
        length + len(packed(hosts[(1 << level) // PER_HOST :][: max(1, (1 << level) // PER_HOST)])) + number
        for level in range(math.ceil(math.log2(size)))
    )
    all_to_all = size * (number + len(packed(told_by(0)))) + size * (number + len(options))
    return leaf, leaf + climbed, all_to_all


def told_by(host: int) -> str:
    """What each rank of a host tells of it."""
    return f"node{host:05d}\nboot-of-host-{host:05d}-0123456789"


def start(args: argparse.Namespace) -> None:
    """Bytes of control messages until the first line of a script, counted where they arrive; then simulated."""
    for size in doubling(args.ranks):
        told = start_world(size, meshed=False)
        heard = [one[1] for one in told]
        leaf, first, everyone = start_bytes(size)
        cost = (
            f"rank 0 {heard[0]:,} B, others at most {max(heard[1:]):,} B; slowest start {max(t[0] for t in told):.2g} s"
        )
        counted = (
            f"counted in {size} processes; packed alone: {first:,} and {leaf:,} B; all to all would be {everyone:,} B"
        )
        row("control messages at start", f"{size} ranks", cost, counted)
    for size in FAR:
        leaf, first, everyone = start_bytes(size)
        cost = f"rank 0 {first:,} B, a leaf {leaf:,} B"
        row(
            "control messages at start",
            f"{size:,} ranks",
            cost,
            f"simulated; all to all would be {everyone:,} B a rank",
        )


class CountingStore(Store):
    """A store in this process that counts what its user reads from it."""

    kept: ClassVar[dict[str, bytes]] = {}
    changed = threading.Condition()

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        with self.changed:
            self.kept[key] = value.encode() if isinstance(value, str) else bytes(value)
            self.changed.notify_all()

    def get(self, key: str) -> bytes:
        """Wait for a value."""
        self.wait([key])
        self.read += len(self.kept[key])
        return self.kept[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for several."""
        with self.changed:
            self.changed.wait_for(lambda: all(key in self.kept for key in keys), 60.0)


def bytes_from_store(size: int, lazily: bool) -> int:
    """What all ranks of a new gloo group of `size` threads read from its store."""
    os.environ["TORCH_GLOO_LAZY_INIT"] = str(int(lazily))
    CountingStore.kept = {}
    stores = [CountingStore() for _ in range(size)]
    groups: list[object] = []

    def make(rank: int) -> None:
        groups.append(dist.ProcessGroupGloo(stores[rank], rank, size, timedelta(seconds=60)))

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del os.environ["TORCH_GLOO_LAZY_INIT"]
    return sum(store.read for store in stores)


def mesh(args: argparse.Namespace) -> None:
    """gloo's own start: what is read from the store, and how many are connected, all with all and on demand."""
    for size in doubling(min(args.ranks, 32)):
        read = [bytes_from_store(size, lazily) for lazily in (False, True)]
        linked = [[one[2] for one in start_world(size, meshed=meshed)] for meshed in (True, False)]
        cost = f"{read[0]:,} and {read[1]:,} B read from the store; at most {max(linked[0])} and {max(linked[1])} links a rank"
        row("gloo: all with all, and on demand", f"{size} ranks", cost, "counted, in threads and in processes")


def rendezvous(args: argparse.Namespace) -> None:
    """Rank 0's look at who has come: a check of every rank's key in the store, one after the other."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for ranks in (8, 80, 800, 8_192):
        setting, looking = [], []
        for turn in range(args.runs):
            keys = [f"{turn}/{rank}" for rank in range(ranks)]
            begun = time.monotonic()
            for key in keys:
                store.set(key, "node00000")
            middle = time.monotonic()
            assert all(store.check([key]) for key in keys)
            setting.append(middle - begun)
            looking.append(time.monotonic() - middle)
        cost = f"set {seconds(setting)}, one look at all {seconds(looking)}"
        row("rendezvous", f"{ranks:,} ranks", cost, f"one client of one TCPStore, {args.runs} times")


def records(args: argparse.Namespace) -> None:
    """What a training step and a file weigh, as a series writes them at one step a second."""
    tags = {"model": "llama-tiny", "engine": "fsdp", "data": "dummy", "dtype": "float32", "phase": "measured"}
    count = int(FLUSH_SECONDS) + 1
    sample = 0.123456789012345

    def block(metric: str, unit: str, step: int) -> int:
        at = 1234567.890123456 + step
        line = encode_block(
            metric, unit, [sample] * count, tags=tags, first_step=step, t_first=at, t_last=at + count - 1
        )
        return len(line)

    everyone = block("step_time", "s", 100_000) / count
    more = (("loss", "1"), ("grad_norm", "1"), ("learning_rate", "1"), ("tokens", "tokens"))
    first = everyone + sum(block(metric, unit, 100_000) for metric, unit in more) / count
    cost = f"rank 0 {first * 3600 / 1e6:.2f} MB/h, others {everyone * 3600 / 1e6:.2f} MB/h"
    row("records of training", "each rank, 1 step/s", cost, f"blocks of {count} samples as encoded")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank-00000.jsonl"
        Recorder(path, Header(0, 8, 0, 8, "node00000", 1, "boot", "cpu", "", "gloo", "comms/bench", 0.0, 0.0)).close()
        row("a record file's header", "each rank", f"{path.stat().st_size} B", "written by assay.recorder")


def scoring(args: argparse.Namespace) -> None:
    """Reading and scoring a run folder of `files` ranks' records, 50 steps each."""
    for files in args.files:
        with tempfile.TemporaryDirectory() as folder:
            make_run(Path(folder), files, steps=50)
            times = []
            for _ in range(args.runs if files <= 800 else 3):
                begun = time.monotonic()
                evaluate(Path(folder))
                times.append(time.monotonic() - begun)
        cost = f"{seconds(times)}, {sum(times) / len(times) / files * 1e3:.2f} ms a file"
        row("reading and scoring", f"{files:,} rank files", cost, f"{len(times)} times, files in the page cache")


PARTS = {part.__name__: part for part in (plan, start, mesh, rendezvous, records, scoring)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all without")
    parser.add_argument("--ranks", type=int, default=64, help="most processes at once")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--files", type=int, nargs="+", default=[8, 80, 800, 8_000])
    args = parser.parse_args()
    print("| what | where | cost | method |\n| --- | --- | --- | --- |")
    for part in args.parts or PARTS:
        PARTS[part](args)


if __name__ == "__main__":
    main()
