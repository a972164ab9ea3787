"""From the times of all pairs to matrices, suspects, verdict and bisection: the same for the script and for the report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median  # of a few numbers at a time, of which numpy is the slower by far

from assay.links.bisection import Crossing, crossing
from assay.links.faults import MOST_SUSPECTS, Suspect, Suspicion, judge, suspicion, worst
from assay.links.matrix import LATENCY_BYTES, ONE_WAY, Matrix, square
from assay.links.rounds import Pair, cuts, spread
from assay.links.verdict import Verdict

MATRIX, CONFIRM, BISECTION, ALONE = "matrix", "confirm", "bisection", "alone"

ALL_PASSES = -1

Key = tuple[str, int, str, int, int, Pair]
"""phase, bytes, ways, cut (−1: none), pass (−1: all together), (from, to) in ranks"""
Times = Mapping[Key, float]
"""s of a transfer, see `condensed`."""


def condensed(samples: Mapping[Key, Sequence[float]]) -> dict[Key, float]:
    """The median of every pass, in the matrix of all passes together too; in `confirm` the fastest transfer of a pass.

    Other load can only slow a transfer, so the fastest tells what the link can do. It is comparable only because all
    pairs that are compared were given equally many transfers.
    """
    together: dict[Key, list[float]] = {}
    for (phase, size, ways, cut, _, pair), times in samples.items():
        if phase == MATRIX:
            together.setdefault((phase, size, ways, cut, ALL_PASSES, pair), []).extend(times)
    return {
        key: float(min(times) if key[0] == CONFIRM else median(times))
        for key, times in {**samples, **together}.items()
        if len(times)
    }


@dataclass(frozen=True)
class Limits:
    """What counts as slow. threshold: share of the usual rate; latency_factor: times the usual latency."""

    threshold: float
    latency_factor: float

    def of(self, size: int) -> float:
        """The relative speed below which a pair is slow at this size."""
        return 1 / self.latency_factor if size <= LATENCY_BYTES else self.threshold


@dataclass(frozen=True)
class Survey:
    """All pairs, what follows from them, and every cut in both directions."""

    matrices: tuple[Matrix, ...]
    verdict: Verdict
    crossings: tuple[tuple[Crossing, Crossing], ...] = ()


def matrices(groups: Iterable[Sequence[int]], hosts: Mapping[int, str], times: Times) -> list[Matrix]:
    """A matrix for every group of ranks that are paired with each other, every size and way, in that order."""
    typical: dict[tuple[int, str], dict[Pair, float]] = {}
    best: dict[tuple[int, str], dict[Pair, float]] = {}
    for (phase, size, ways, _, number, pair), time in times.items():
        if phase == MATRIX and number == ALL_PASSES:
            typical.setdefault((size, ways), {})[pair] = time
        elif phase == MATRIX:
            fastest = best.setdefault((size, ways), {})
            fastest[pair] = min(time, fastest.get(pair, time))
    order = sorted(typical, key=lambda one: (one[0], one[1] != ONE_WAY))
    return [
        Matrix(
            tuple(group),
            tuple(hosts[rank] for rank in group),
            size,
            ways,
            square(group, ways, typical[size, ways]),
            square(group, ways, best.get((size, ways), {})),
        )
        for group in groups
        for size, ways in order
    ]


def suspects(measured: Sequence[Matrix], limits: Limits) -> tuple[list[Suspicion], list[Suspect]]:
    """What each matrix makes suspect, and all suspects that are measured again, each once, the slowest first."""
    found = [suspicion(one, limits.of(one.bytes)) for one in measured]
    return found, worst(found)


def verdict(measured: Sequence[Matrix], limits: Limits, times: Times) -> Verdict:
    """Who is named, from the matrices and the times of phase `confirm`."""
    found, everyone = suspects(measured, limits)
    again: dict[tuple[int, str], dict[tuple[int, Pair], float]] = {}
    for (phase, size, ways, _, number, pair), time in times.items():
        if phase == CONFIRM:
            again.setdefault((size, ways), {})[number, pair] = time
    chosen = everyone[:MOST_SUSPECTS]
    findings = [judge(one, again.get((one.bytes, one.ways), {}), limits.of(one.bytes), len(chosen)) for one in chosen]
    uneven = [(one.bytes, one.ways, it.uneven) for one, it in zip(measured, found, strict=True) if it.uneven]
    ends = max((len(one.ranks) for one in measured), default=0)
    return Verdict(ends, tuple(findings), len(everyone) - len(chosen), tuple(uneven))


def crossings(
    groups: Sequence[Sequence[int]], hosts: Mapping[int, str], times: Times
) -> list[tuple[Crossing, Crossing]]:
    """Every cut of which both directions were measured, there and back."""
    ends = groups[0]
    if any(len(group) != len(ends) for group in groups):  # records of a run that broke off
        return []
    several = len({hosts[rank] for rank in ends}) == len(ends)
    names = [hosts[rank] if several else f"rank {rank}" for rank in ends]
    found = []
    for number, cut in enumerate(cuts(len(ends))):
        there = spread(cut.pairs, groups)
        first, second = [names[end] for end in cut.first], [names[end] for end in cut.second]
        both = (
            _direction(number, (first, second), there, times),
            _direction(number, (second, first), [(b, a) for a, b in there], times),
        )
        if both[0] and both[1]:
            found.append((both[0], both[1]))
    return found


def _direction(
    cut: int, halves: tuple[Sequence[str], Sequence[str]], pairs: Sequence[Pair], times: Times
) -> Crossing | None:
    wanted = set(pairs)
    chosen: dict[str, dict[tuple[int, Pair], float]] = {BISECTION: {}, ALONE: {}}
    sizes = set()
    for (phase, size, _, of, number, pair), time in times.items():
        if phase in chosen and of == cut and pair in wanted:
            chosen[phase][number, pair] = time
            sizes.add(size)
    if len(sizes) != 1:
        return None
    return crossing(cut, halves, pairs, sizes.pop(), chosen[BISECTION], chosen[ALONE])
