"""The tables that comms/bench.py prints: the columns of nccl-tests or of DeepSpeed's suite, by their definitions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from assay.bandwidth import COLLECTIVES, algbw, busbw, deepspeed_busbw, deepspeed_throughput
from assay.estimates import Estimate, compare_pairs


@dataclass(frozen=True)
class Heading:
    """What the rows of one table share. world: ranks of a group; single: how one call's time is taken over ranks."""

    op: str
    world: int
    groups: int
    hosts: int
    transport: str
    device: str
    single: str
    variant: str


@dataclass(frozen=True)
class Line:
    """One measured size. size in B; per_call (back-to-back mean), p50 and p99 in s; wrong elements over all ranks."""

    heading: Heading
    size: int
    itemsize: int
    dtype: str
    redop: str
    root: int
    wrong: int
    per_call: Estimate
    p50: Estimate
    p99: float | None


def _nccl_header(heading: Heading) -> str:
    several = f"{heading.groups} groups of " if heading.groups > 1 else ""
    hosts = f"{heading.hosts} host{'s' if heading.hosts > 1 else ''}"
    where = f"{several}{heading.world} ranks on {hosts}, {heading.transport}, {heading.device}{heading.variant}"
    return (
        f"# {heading.op}: {where}\n"
        f"# time: mean of back-to-back calls; p50, p99: single calls after a barrier, {heading.single}; "
        "±: half of the 95 % interval of p50\n"
        f"#{'size':>12} {'count':>12} {'type':>9} {'redop':>6} {'root':>5} {'time':>10} {'algbw':>8} {'busbw':>8} "
        f"{'#wrong':>7} {'p50':>10} {'±':>6} {'p99':>10}\n"
        f"#{'(B)':>12} {'(elements)':>12} {'':>9} {'':>6} {'':>5} {'(us)':>10} {'(GB/s)':>8} {'(GB/s)':>8} "
        f"{'':>7} {'(us)':>10} {'(%)':>6} {'(us)':>10}"
    )


def _nccl_row(line: Line) -> str:
    op, world, seconds = line.heading.op, line.heading.world, line.per_call.value
    count = line.size // line.itemsize // COLLECTIVES[op].parts(world)  # nccl-tests counts one rank's part
    half = line.p50.half_width
    return (
        f" {line.size:>12} {count:>12} {line.dtype:>9} {line.redop:>6} {line.root:>5} {seconds * 1e6:>10.2f} "
        f"{algbw(line.size, seconds) / 1e9:>8.3f} {busbw(op, line.size, seconds, world) / 1e9:>8.3f} "
        f"{line.wrong:>7} {line.p50.value * 1e6:>10.2f} {'NA' if half is None else f'{half * 100:.1f}':>6} "
        f"{'NA' if line.p99 is None else f'{line.p99 * 1e6:.2f}':>10}"
    )


def _deepspeed_header(heading: Heading) -> str:
    return (
        f"---- Performance of {heading.op} on {heading.world} devices "
        f"---------------------------------------------------------\n"
        f"{'Size (Bytes)':<20} {'Description':<25} {'Duration':<20} {'Throughput (Gbps)':<20} {'BusBW (Gbps)':<20}\n"
        + "-"
        * 105
    )


def _deepspeed_size(count: int) -> str:
    """Bytes as DeepSpeed writes them: units of 1024 under decimal names, two digits."""
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{round(size, 2)} {unit}"


def _deepspeed_row(line: Line) -> str:
    op, n, seconds = line.heading.op, line.heading.world, line.per_call.value
    printed = COLLECTIVES[op].deepspeed_size(line.size, n)
    return (
        f"{_deepspeed_size(printed):<20} {f'{printed // line.itemsize}x{line.itemsize}':<25} "
        f"{f'{seconds * 1e3:.3f} ms':<20} {deepspeed_throughput(op, line.size, seconds, n) / 1e9:<20.3f} "
        f"{deepspeed_busbw(op, line.size, seconds, n) / 1e9:<20.3f}"
    )


STYLES: dict[str, tuple[Callable[[Heading], str], Callable[[Line], str]]] = {
    "nccl": (_nccl_header, _nccl_row),
    "deepspeed": (_deepspeed_header, _deepspeed_row),
}
"""Style → (header of a table, row of a size)."""


def versus_row(names: Sequence[str], size: int, calls: Sequence[Sequence[float]]) -> str:
    """The second of two transports against the first, by pairs of batches that took turns.

    calls: s per call of each batch, over the first transport and over the second; size in B.
    """
    ratio = compare_pairs(calls[0], calls[1]).ratio
    spread = f"[{ratio.low:.3g}, {ratio.high:.3g}]" if ratio.low and ratio.high else "(too few pairs for an interval)"
    return (
        f"# {names[1]} / {names[0]} at {size} B: time x {ratio.value:.3g} {spread}, rank 0, "
        f"{ratio.samples} pairs of batches"
    )
