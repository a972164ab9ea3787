"""What one half of the ends sends to the other when all its pairs talk at once, and which half is slower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from assay.estimates import Estimate, compare_pairs, median_interval
from assay.links.rounds import Pair

PASSES = 6  # the fewest that give a 95 % interval
ALONE_PAIRS = 8  # pairs of a cut that are measured alone too, spread over all
ALONE_PASSES = 3
LEAST = 0.1  # difference of the two directions that makes a half slower

Times = Mapping[tuple[int, Pair], float]
"""(pass, (from, to)) → median s of a transfer."""


@dataclass(frozen=True)
class Crossing:
    """One cut in one direction. senders, receivers: names of the halves' ends. rate: B/s over all pairs, they at once.

    sums: that of every pass. of_alone: rate of the pairs that were measured alone too, as a share of the sum of their rates alone; None if unknown.
    """

    cut: int
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    pairs: int
    bytes: int
    rate: Estimate
    sums: tuple[float, ...]
    of_alone: float | None


def crossing(
    cut: int,
    halves: tuple[Sequence[str], Sequence[str]],
    pairs: Sequence[Pair],
    size: int,
    together: Times,
    alone: Times,
) -> Crossing | None:
    """What a cut carries in one direction. pairs: (from, to) of all that talk at once; None if one has no times.

    The rate of a pass is the sum over pairs of size / median time; the figure is the median over passes.
    """
    numbers = sorted({number for number, _ in together})
    complete = [number for number in numbers if all((number, pair) in together for pair in pairs)]
    if not complete or not pairs:
        return None
    sums = [sum(size / together[number, pair] for pair in pairs) for number in complete]
    rate = median_interval(sums)
    method = f"sum over {len(pairs)} pairs that talk at once; {rate.method}"
    known = sorted({pair for _, pair in alone} & set(pairs))
    share = None
    if known:
        rates = [[_typical(times, pair, size) for pair in known] for times in (together, alone)]
        share = sum(rates[0]) / sum(rates[1])
    return Crossing(
        cut, tuple(halves[0]), tuple(halves[1]), len(pairs), size, replace(rate, method=method), tuple(sums), share
    )


def _typical(times: Times, pair: Pair, size: int) -> float:
    return size / float(np.median([time for (_, one), time in times.items() if one == pair]))


def slower_half(there: Crossing, back: Crossing) -> Crossing | None:
    """The direction that carries less, by a tenth at least: as the passes, in which both had their turn, decide."""
    passes = min(len(there.sums), len(back.sums))
    verdict = compare_pairs(there.sums[:passes], back.sums[:passes], margin=LEAST).verdict
    return there if verdict == "higher" else back if verdict == "lower" else None
