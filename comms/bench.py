"""Time collectives over sizes.

    torchrun --nproc-per-node 2 comms/bench.py
    torchrun --nproc-per-node 8 comms/bench.py --ops all -b 8 -e 4GiB -f 2
    torchrun --nproc-per-node 2 comms/bench.py --ops all_reduce --style deepspeed --out records

Each size is timed twice. Back to back: one clock around N calls; its mean gives the bandwidths, as in nccl-tests and
DeepSpeed. Call by call: from the last rank's entry to the last rank's exit; its percentiles tell what one call takes.
Before both, one call on patterned data is checked, element by element.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from assay.bandwidth import COLLECTIVES as ARITHMETIC
from assay.bandwidth import algbw, busbw, deepspeed_busbw, deepspeed_throughput
from assay.clock import now
from assay.collectives import OPERATIONS, Check, Setting, check, fill
from assay.errors import RunFailed
from assay.estimates import (
    FEWEST_FOR_PERCENTILE,
    Estimate,
    completion_times,
    is_settled,
    mean_of_batches,
    median_interval,
    next_look,
    percentile,
    slowest_rank_times,
)
from assay.options import CommsOptions, parse_command_line
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.transports import TorchTransport
from assay.units import format_duration, format_size

FEWEST_CALLS = 6  # timed one by one even when the budget is gone: the fewest that give a 95 % interval


class Run:
    """One op at one size on this rank: the buffers and the call that is timed."""

    def __init__(self, options: CommsOptions, here: Session, op: str, size: int) -> None:
        dtype: torch.dtype = getattr(torch, options.dtype)
        world = here.world
        self.op, self.size, self.count = op, size, size // options.itemsize
        self.operation = OPERATIONS[op]
        self.setting = Setting(world.rank, world.size, world.pair, dtype, here.device.torch_device, options.seed)
        self.takes_part = self.operation.takes_part(self.setting)
        self.buffers = self.operation.allocate(self.setting, self.count)
        self.transport = TorchTransport(world.backend)
        self.tags: dict[str, TagValue] = {
            "op": op,
            "bytes": size,
            "dtype": options.dtype,
            "backend": world.backend,
            "world": world.size,
        }

    def refill(self) -> None:
        """Fresh patterned data."""
        fill(self.setting, self.buffers)

    def call(self) -> None:
        """The collective, awaited."""
        self.operation.call(self.setting, self.transport, self.buffers)

    def check(self) -> Check:
        """One call on fresh data, compared with what this rank must hold afterwards."""
        self.refill()
        self.call()
        if not self.takes_part:
            return Check(0, 0, 0, None)
        return check(self.operation, self.setting, self.buffers)


def time_batches(options: CommsOptions, here: Session, run: Run, calls: int) -> list[float]:
    """Seconds of each batch of `calls` back-to-back calls, one clock around them, until narrow or time is up."""
    durations: list[float] = []
    begun = now()
    while True:
        run.refill()  # a sum in place grows with every call; fresh data keep it finite
        here.device.synchronize()
        here.world.barrier()
        # ---- timed region
        start = now()
        for _ in range(calls):
            run.call()
        here.device.synchronize()
        durations.append(now() - start)
        # ----
        enough = looks(durations) and is_settled(durations, options.target)
        if len(durations) >= options.batches and agreed(here, enough or now() - begun >= options.budget):
            return durations


def time_calls(options: CommsOptions, here: Session, run: Run, guess: float) -> tuple[list[float], list[float]]:
    """Entry and exit (s, monotonic) of each call, each after a barrier, until the interval is narrow or time is up."""
    entries: list[float] = []
    exits: list[float] = []
    begun = now()
    run.refill()
    while True:
        affordable = int((options.budget - (now() - begun)) / guess)
        most = min(next_look(len(entries)), options.max_calls) - len(entries)
        for _ in range(agreed(here, min(most, max(affordable, FEWEST_CALLS - len(entries), 1)))):
            here.world.barrier()
            # ---- timed region
            entries.append(now())
            run.call()
            here.device.synchronize()
            exits.append(now())
            # ----
        enough = looks(entries) and is_settled(across_ranks(here, run, entries, exits), options.target)
        if enough or len(entries) >= options.max_calls or agreed(here, now() - begun >= options.budget):
            return entries, exits


def looks(samples: Sequence[float]) -> bool:
    """Whether the stopping rule looks after this many samples."""
    return next_look(len(samples) - 1) == len(samples)


def agreed(here: Session, value: int) -> int:
    """Rank 0's value, on every rank: ranks that decide for themselves end up in different calls."""
    tensor = torch.tensor([value], dtype=torch.int64, device=here.device.torch_device)
    dist.broadcast(tensor, 0)
    return int(tensor.item())


def across_ranks(here: Session, run: Run, entries: Sequence[float], exits: Sequence[float]) -> list[float]:
    """Seconds per call over the ranks that take part, from all ranks' entries and exits."""
    gathered = here.world.gather((list(entries), list(exits)) if run.takes_part else None)
    pairs = [pair for pair in gathered if isinstance(pair, tuple)]
    combine = completion_times if here.world.one_clock else slowest_rank_times
    return list(combine([pair[0] for pair in pairs], [pair[1] for pair in pairs]))


@dataclass(frozen=True)
class Measurement:
    """One op at one size, as it is printed: times in s, `wrong` elements over all ranks."""

    run: Run
    wrong: int
    per_call: Estimate
    p50: Estimate
    p99: float | None


def measure(options: CommsOptions, here: Session, run: Run) -> Measurement:
    """Check, warm up, time both ways, and record the raw samples."""
    recorder, world = here.recorder, here.world
    found = run.check()
    everyone = [item for item in world.gather(found) if isinstance(item, Check)]
    wrong = sum(item.wrong for item in everyone)
    recorder.block("check_errors", "1", [found.wrong], {**run.tags, "looked_at": found.looked_at, "of": found.total})

    warm_start = now()
    for _ in range(options.warmup):
        run.call()
    here.device.synchronize()
    recorder.block("warmup_time", "s", [now() - warm_start], {**run.tags, "calls": options.warmup})

    world.barrier()
    guess_start = now()
    run.call()
    here.device.synchronize()
    guess = max(now() - guess_start, 1e-9)

    calls = agreed(here, max(1, min(options.calls, int(options.budget / options.batches / guess))))
    batches = time_batches(options, here, run, calls)
    entries, exits = time_calls(options, here, run, guess)
    if run.takes_part:
        recorder.block("batch_time", "s", batches, {**run.tags, "calls": calls})
        recorder.block("call_entry", "s", entries, run.tags)
        recorder.block("call_exit", "s", exits, run.tags)

    parts = [item for item in world.gather(batches if run.takes_part else None) if isinstance(item, list)]
    slowest = [max(durations) for durations in zip(*parts, strict=True)]
    times = across_ranks(here, run, entries, exits)
    p99 = percentile(times, 99) if len(times) >= FEWEST_FOR_PERCENTILE[99] else None
    return Measurement(run, wrong, mean_of_batches(slowest, calls), median_interval(times), p99)


def nccl_header(options: CommsOptions, here: Session, op: str) -> str:
    """nccl-tests' columns, with the call-by-call percentiles and the interval behind them."""
    world = here.world
    hosts = len(set(world.hosts))
    single = "last entry to last exit" if world.one_clock else "longest over ranks (hosts without a common clock)"
    where = f"{world.size} ranks on {hosts} host{'s' if hosts > 1 else ''}, {world.backend}, {here.device.name}"
    return (
        f"# {op}: {where}\n"
        f"# time: mean of back-to-back calls; p50, p99: single calls after a barrier, {single}; "
        "±: half of the 95 % interval of p50\n"
        f"#{'size':>12} {'count':>12} {'type':>9} {'redop':>6} {'root':>5} {'time':>10} {'algbw':>8} {'busbw':>8} "
        f"{'#wrong':>7} {'p50':>10} {'±':>6} {'p99':>10}\n"
        f"#{'(B)':>12} {'(elements)':>12} {'':>9} {'':>6} {'':>5} {'(us)':>10} {'(GB/s)':>8} {'(GB/s)':>8} "
        f"{'':>7} {'(us)':>10} {'(%)':>6} {'(us)':>10}"
    )


def nccl_row(options: CommsOptions, here: Session, item: Measurement) -> str:
    """One line of nccl-tests' table. GB are 10⁹ bytes."""
    run, seconds = item.run, item.per_call.value
    count = run.count // ARITHMETIC[run.op].parts(here.world.size)  # nccl-tests counts one rank's part
    redop = "sum" if run.operation.reduces else "none"
    root = 0 if run.op == "broadcast" else -1
    half = item.p50.half_width
    return (
        f" {run.size:>12} {count:>12} {options.dtype:>9} {redop:>6} {root:>5} {seconds * 1e6:>10.2f} "
        f"{algbw(run.size, seconds) / 1e9:>8.3f} {busbw(run.op, run.size, seconds, here.world.size) / 1e9:>8.3f} "
        f"{item.wrong:>7} {item.p50.value * 1e6:>10.2f} {'NA' if half is None else f'{half * 100:.1f}':>6} "
        f"{'NA' if item.p99 is None else f'{item.p99 * 1e6:.2f}':>10}"
    )


def deepspeed_header(options: CommsOptions, here: Session, op: str) -> str:
    """The header of DeepSpeed's communication suite."""
    return (
        f"---- Performance of {op} on {here.world.size} devices "
        f"---------------------------------------------------------\n"
        f"{'Size (Bytes)':<20} {'Description':<25} {'Duration':<20} {'Throughput (Gbps)':<20} {'BusBW (Gbps)':<20}\n"
        + "-"
        * 105
    )


def deepspeed_size(count: int) -> str:
    """Bytes as DeepSpeed writes them: units of 1024 under decimal names, two digits."""
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{round(size, 2)} {unit}"


def deepspeed_row(options: CommsOptions, here: Session, item: Measurement) -> str:
    """One line of DeepSpeed's table, by its definitions; Gbps are 10⁹ bits per second."""
    run, n, seconds = item.run, here.world.size, item.per_call.value
    printed = ARITHMETIC[run.op].deepspeed_size(run.size, n)
    return (
        f"{deepspeed_size(printed):<20} {f'{printed // options.itemsize}x{options.itemsize}':<25} "
        f"{f'{seconds * 1e3:.3f} ms':<20} {deepspeed_throughput(run.op, run.size, seconds, n) / 1e9:<20.3f} "
        f"{deepspeed_busbw(run.op, run.size, seconds, n) / 1e9:<20.3f}"
    )


STYLES = {"nccl": (nccl_header, nccl_row), "deepspeed": (deepspeed_header, deepspeed_row)}


def bench(options: CommsOptions, here: Session) -> None:
    """Measure every op at every size and print the table. Raises RunFailed on rank 0 if any data check failed."""
    header, row = STYLES[options.style]
    todo = [(op, size) for op in options.ops for size in options.sizes(op, here.world.size)]
    begun, wrong, printed = now(), 0, ""
    for done, (op, size) in enumerate(todo):
        if here.world.is_first and op != printed:
            print(header(options, here, op))
        printed = op
        item = measure(options, here, Run(options, here, op, size))
        wrong += item.wrong
        if here.world.is_first:
            print(row(options, here, item), flush=True)
            # By hand, the rows themselves are the progress; under the runner they go to a log.
            if "ASSAY_RUN" in os.environ:
                print(progress_line(done + 1, len(todo), f"{op} {format_size(size)}"), flush=True)
    if here.world.is_first:
        kept = f"raw samples in {options.out}" if options.out else "no raw samples kept; give --out DIR to keep them"
        print(f"# {len(todo)} measurements in {format_duration(now() - begun)}; {kept}")
    if wrong and here.world.is_first:
        raise RunFailed(f"{wrong} elements are wrong after their collective; trust no figure of this run")


if __name__ == "__main__":
    arguments = parse_command_line(CommsOptions, __doc__)
    with session(arguments, "comms/bench") as joined:
        bench(arguments, joined)
