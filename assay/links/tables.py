"""What the script prints: what it is going to measure, and the matrix as a table."""

import math
from collections.abc import Sequence

import numpy as np

from assay.links.bisection import ALONE_PASSES, PASSES
from assay.links.faults import CONFIRM_PASSES, CONFIRM_TRANSFERS, MOST_SUSPECTS, PARTNERS
from assay.links.matrix import BOTH_WAYS, Matrix
from assay.links.rounds import cuts
from assay.options.links import LinksOptions
from assay.units import format_si, format_size, si_scale

MOST_COLUMNS = 12  # of a matrix that is printed whole
SLOWEST = 5  # pairs that are printed of a larger one

_BLOCK_BYTES, _SAMPLE_BYTES = 520, 24  # of a record, at most


def heading(options: LinksOptions, groups: Sequence[Sequence[int]], hosts: int, over: str) -> str:
    """What is going to be measured, and the most that a rank will log of it. over: the transport and the device."""
    ends = len(groups[0])
    who = f"{ends} hosts" if hosts == ends else f"{ends} ranks on {hosts} host{'s' if hosts > 1 else ''}"
    several = f", {len(groups)} ranks of each at once" if len(groups) > 1 else ""
    sizes = ", ".join(map(format_size, options.sizes))
    most = logged_at_most(options, ends) / 1e6
    return f"# {ends * (ends - 1) // 2} pairs of {who}{several}, {sizes}, over {over}; each rank logs {most:.1f} MB at most"


def logged_at_most(options: LinksOptions, ends: int) -> int:
    """Bytes of a rank's record file, even if this rank leads all its pairs."""
    blocks = 3 * len(options.sizes) * options.passes * (ends - 1) + len(cuts(ends)) * 2 * (PASSES + ALONE_PASSES) + 16
    again = CONFIRM_PASSES * 2 * PARTNERS * MOST_SUSPECTS * (_BLOCK_BYTES + _SAMPLE_BYTES * CONFIRM_TRANSFERS)
    return blocks * (_BLOCK_BYTES + _SAMPLE_BYTES * options.transfers) + again


def matrix_lines(measured: Matrix) -> list[str]:
    """Rates (latencies at a small size), from the rank of the row to the rank of the column; the slowest of a large one."""
    both = ", both ways at once, both counted" if measured.ways == BOTH_WAYS else ""
    unit = "s" if measured.is_latency else "B/s"
    values = measured.latencies if measured.is_latency else measured.rates
    known = np.isfinite(values)
    if not known.any():
        return [f"# {format_size(measured.bytes)}{both}: no pair was measured"]
    what = "latency, one way" if measured.is_latency and not both else "latency" if measured.is_latency else "rate"
    if len(measured.ranks) > MOST_COLUMNS:
        order = np.argsort(np.where(measured.pairs, measured.times, -1), axis=None)[::-1][:SLOWEST]
        pairs = [np.unravel_index(index, values.shape) for index in order]
        shown = [f"{measured.ranks[i]}→{measured.ranks[j]} {format_si(float(values[i, j]), unit)}" for i, j in pairs]
        middle = format_si(float(np.median(values[known])), unit)
        return [f"# {format_size(measured.bytes)}{both}: median {what} {middle}; slowest pairs: {', '.join(shown)}"]
    scale, shown_unit = si_scale(float(np.median(values[known])), unit)
    lines = [f"# {format_size(measured.bytes)}{both}: {what} in {shown_unit}, from the rank at the left to that above"]
    lines.append(" " * 6 + "".join(f"{rank:>9}" for rank in measured.ranks))
    for rank, row in zip(measured.ranks, values / scale, strict=True):
        lines.append(f"{rank:>6}" + "".join(f"{'–' if math.isnan(value) else f'{value:.3g}':>9}" for value in row))
    return lines
