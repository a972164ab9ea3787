"""Which ranks and links the matrix makes suspect, and whether measuring them alone confirms it.

The model is log speed(i→j) = usual + sends(i) + receives(j) + link(i→j), in which nearly every term but the first is 0.
The fewest terms are sought that explain the slow pairs: a rank, if nearly all its pairs are slow; else the pair itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from assay.estimates import Estimate, compare_pairs
from assay.links.matrix import BOTH_WAYS, Array, Mask, Matrix, high_median, relative_speed
from assay.links.rounds import Pair

MOST = 0.75  # share of an end's pairs that must be slow for the end to be the reason
FAST = 0.1  # share of pairs far above the usual that puts it in question; of 5 ends, 2 healthy ones have as many
PARTNERS = 3  # pairs of a suspect that are measured again, and pairs that they are held against
MOST_SUSPECTS = 24  # measured again, the slowest first: each takes a while, and all others wait
CONFIRM_PASSES = 15  # with 6 suspects the interval leaves out two passes at either end, with 50 one
CONFIRM_TRANSFERS = 3  # of each pair in a pass

SENDS, RECEIVES, EXCHANGES = "sends", "receives", "exchanges"

T = TypeVar("T")


@dataclass(frozen=True)
class Suspect:
    """A rank or a link that looks slow. ranks: (rank,), or (from, to) of a link. hosts: of these.

    Without ranks it is the usual pair that looks slow, beside the fastest: those are its controls then.
    does: sends, receives or exchanges, which is what is slow. ratio: its speed over the usual, in the matrix. edges:
    pairs to be measured again, alone; controls: healthy pairs that they are held against, empty if there are none.
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    does: str
    bytes: int
    ways: str
    ratio: float
    edges: tuple[Pair, ...]
    controls: tuple[Pair, ...]

    @property
    def is_link(self) -> bool:
        """Whether it is a link and not a rank."""
        return len(self.ranks) == 2


@dataclass(frozen=True)
class Suspicion:
    """What a matrix makes suspect, the slowest first. uneven: slow pairs that are too many to be single links, else 0."""

    suspects: tuple[Suspect, ...] = ()
    uneven: int = 0


@dataclass(frozen=True)
class Finding:
    """A suspect after it was measured alone. ratio: its speed over that of healthy pairs, None if it could not be.

    confirmed: the whole interval lies below the limit.
    """

    suspect: Suspect
    ratio: Estimate | None
    confirmed: bool

    @property
    def unknown(self) -> str:
        """Why there is no ratio; empty where there is one."""
        if self.ratio is not None:
            return ""
        return "it was not measured again" if self.suspect.controls else "no healthy pair is left to compare it with"


@dataclass(frozen=True)
class _End:
    """An end (by index) that explains slow pairs: what it does slowly, whether across hosts or within, how slowly."""

    index: int
    does: str
    across: bool
    ratio: float


def suspicion(measured: Matrix, limit: float) -> Suspicion:
    """Suspects of one matrix: pairs slower than `limit` of the usual, explained by as few ranks and links as possible.

    A rank is taken if `MOST` of its pairs that no other rank explains are slow, two at least. What then is still slower
    than `limit` of what the ranks taken explain is a link, unless there are more of these than ends: then the network
    is uneven by itself (several switches, several kinds of links), and none is blamed.

    Where half of the ends are slow, so are most pairs, and slow is usual: then the pairs of the others with each other
    stand out, as far above the usual as a slow pair lies below it, and the usual is suspect.
    """
    relative = relative_speed(measured, measured.best)
    across = _across(measured)
    explained = np.ones(relative.shape)
    ends: list[_End] = []
    while end := _slowest_end(relative, explained, limit, measured.ways, across):
        ends.append(end)
        touched = np.zeros(relative.shape, dtype=bool)
        if end.does in (SENDS, EXCHANGES):
            touched[end.index] = True
        if end.does in (RECEIVES, EXCHANGES):
            touched[:, end.index] = True
        touched &= across == end.across
        explained = np.where(touched, np.minimum(explained, end.ratio), explained)
    left = measured.pairs & (relative < limit * explained)
    links = [(int(i), int(j)) for i, j in np.argwhere(left)]
    uneven = len(links) if len(links) > len(measured.ranks) else 0
    healthy = np.isfinite(relative) & (relative >= limit)
    well = np.isfinite(relative) & (relative >= limit * explained)
    suspected = [_rank(measured, end, {one.index for one in ends}, healthy, across) for end in ends]
    suspected += (
        []
        if uneven
        else [_link(measured, pair, relative, explained, well & (across == across[pair])) for pair in links]
    )
    suspected += [usual for kind in (across, ~across) if (usual := _usual(measured, relative, kind, limit))]
    return Suspicion(tuple(sorted(suspected, key=lambda suspect: suspect.ratio)), uneven)


def _usual(measured: Matrix, relative: Array, kind: Mask, limit: float) -> Suspect | None:
    # Of pairs between hosts, or of pairs within one: None if few are far above it.
    pairs = measured.pairs & kind
    fast = pairs & (relative > 1 / limit)
    if not fast.any() or fast.sum() < FAST * pairs.sum():
        return None
    edges, controls = (
        [(int(i), int(j)) for i, j in np.argwhere(chosen)] for chosen in (pairs & (relative >= limit) & ~fast, fast)
    )
    does = EXCHANGES if measured.ways == BOTH_WAYS else SENDS
    return _suspect(measured, (), does, 1 / high_median(relative[fast]), _some(edges), controls)


def _across(measured: Matrix) -> Mask:
    names = np.array(measured.hosts)
    return np.asarray(names[:, None] != names[None, :])


def _slowest_end(relative: Array, explained: Array, limit: float, ways: str, across: Mask) -> _End | None:
    """The end that explains the most slow pairs; None if none does."""
    best: tuple[tuple[float, int, float], _End] | None = None
    for far in (True, False):
        free = np.isfinite(relative) & (explained == 1) & (across == far)
        slow = free & (relative < limit)
        for does in (EXCHANGES,) if ways == BOTH_WAYS else (SENDS, RECEIVES):
            # A rank's row is what it sends, its column what it receives.
            counted, seen = (mask.sum(axis=0 if does == RECEIVES else 1) for mask in (free, slow))
            for end in map(int, np.flatnonzero((counted >= 2) & (seen >= MOST * counted))):
                side = relative[:, end][free[:, end]] if does == RECEIVES else relative[end][free[end]]
                ratio = high_median(side)
                key = (float(seen[end] / counted[end]), int(seen[end]), -ratio)
                if best is None or key > best[0]:
                    best = key, _End(end, does, far, ratio)
    return best[1] if best else None


def _rank(measured: Matrix, end: _End, ends: set[int], healthy: Mask, across: Mask) -> Suspect:
    # Like is held against like: pairs between hosts against pairs between hosts.
    like = across == end.across
    others = [other for other in range(len(measured.ranks)) if other not in ends]
    partners = _some([other for other in others if like[end.index, other]])
    pairs = [(other, end.index) if end.does == RECEIVES else (end.index, other) for other in partners]
    between = [(a, b) for a in partners for b in others if a != b and healthy[a, b] and like[a, b]]
    return _suspect(measured, (end.index,), end.does, end.ratio, pairs, between)


def _link(measured: Matrix, pair: Pair, relative: Array, explained: Array, well: Mask) -> Suspect:
    sender, receiver = pair
    # Like is held against like here too, and the link of a slow rank against that rank's other links.
    usable = well & (explained == explained[pair])
    others = [end for end in range(len(measured.ranks)) if end not in pair]
    # Both ends with others: if these are fast, it is not the ends that are slow.
    controls = [(sender, other) for other in others if usable[sender, other]]
    controls += [(other, receiver) for other in others if usable[other, receiver]]
    does = EXCHANGES if measured.ways == BOTH_WAYS else SENDS
    return _suspect(measured, pair, does, float(relative[pair]), [pair], controls)


def _suspect(
    measured: Matrix, ends: Sequence[int], does: str, ratio: float, edges: Iterable[Pair], controls: Sequence[Pair]
) -> Suspect:
    def named(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
        return tuple((measured.ranks[a], measured.ranks[b]) for a, b in once(pairs, measured.ways))

    return Suspect(
        ranks=tuple(measured.ranks[end] for end in ends),
        hosts=tuple(measured.hosts[end] for end in ends),
        does=does,
        bytes=measured.bytes,
        ways=measured.ways,
        ratio=ratio,
        edges=named(edges),
        controls=named(_some(once(controls, measured.ways))),
    )


def once(pairs: Iterable[Pair], ways: str) -> list[Pair]:
    """Pairs without repeats; both ways at once, (a, b) and (b, a) are the same."""
    return list(dict.fromkeys((min(pair), max(pair)) if ways == BOTH_WAYS else pair for pair in pairs))


def _some(items: Sequence[T]) -> list[T]:
    """At most PARTNERS of them, spread over all."""
    chosen = np.linspace(0, len(items) - 1, min(PARTNERS, len(items))).round().astype(int) if items else []
    return [items[index] for index in chosen]


def worst(suspicions: Iterable[Suspicion]) -> list[Suspect]:
    """Suspects of all matrices: each rank or link once for what it does at a size; ranks first, the slowest first.

    What is slow one way is slow both ways at once too, at the same size: there the latter is asked only of ranks, and of
    links between ranks, that are not suspected already.
    """
    everyone = [suspect for one in suspicions for suspect in one.suspects]
    alone = {(frozenset(suspect.ranks), suspect.bytes) for suspect in everyone if suspect.ways != BOTH_WAYS}
    chosen: dict[object, Suspect] = {}
    for suspect in sorted(everyone, key=lambda suspect: (suspect.is_link, suspect.ratio)):
        known = [frozenset(suspect.ranks), *(frozenset([rank]) for rank in suspect.ranks)]
        if suspect.ways == BOTH_WAYS and any((ranks, suspect.bytes) in alone for ranks in known):
            continue
        chosen.setdefault((suspect.ranks, suspect.does, suspect.bytes), suspect)
    return list(chosen.values())


def judge(suspect: Suspect, times: Mapping[tuple[int, Pair], float], limit: float, judged: int = 1) -> Finding:
    """Whether a suspect is slow when measured alone. times: (pass, (from, to)) → s of the fastest transfer.

    In each pass the median speed of its pairs is divided by that of the healthy ones in the same pass, so that a machine
    that is slow for a while slows both. Confirmed, if the interval of the median of these ratios lies below `limit`.
    judged: suspects of this run; their intervals hold together with 95 % confidence, for each is a chance to err.
    """
    speeds: list[tuple[float, float]] = []
    for number in sorted({number for number, _ in times}):
        healthy, own = (
            high_median([1 / times[number, pair] for pair in pairs if (number, pair) in times])
            for pairs in (suspect.controls, suspect.edges)
        )
        if np.isfinite(healthy) and np.isfinite(own):
            speeds.append((healthy, own))
    if not speeds:
        return Finding(suspect, None, False)
    ratio = compare_pairs([healthy for healthy, _ in speeds], [own for _, own in speeds], metrics=judged).ratio
    return Finding(suspect, ratio, ratio.high is not None and ratio.high < limit)
