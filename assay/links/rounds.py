"""Who talks to whom: the rounds of a tournament, the halves of a bisection, and the ranks that talk for their hosts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from assay.errors import BadInput

Pair = tuple[int, int]
"""(from, to)"""


def rounds(count: int) -> list[list[Pair]]:
    """All pairs (lower, higher) of 0 … count−1, once each, in rounds of disjoint pairs: count−1 rounds, count if odd.

    The circle method of round-robin tournaments: one stays, the others move on by one seat each round. If the number is
    odd, whoever is paired with the empty seat rests.
    """
    ring: list[int | None] = list(range(count))
    if count % 2:
        ring.append(None)
    found = []
    for _ in range(len(ring) - 1):
        facing = zip(ring[: len(ring) // 2], reversed(ring), strict=False)
        found.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


@dataclass(frozen=True)
class Cut:
    """Two halves of the ends, as indices. The k-th of one talks with the k-th of the other; who is left over rests."""

    first: tuple[int, ...]
    second: tuple[int, ...]

    @property
    def pairs(self) -> list[Pair]:
        """(of the first half, of the second half)."""
        return list(zip(self.first, self.second, strict=False))


def cuts(count: int) -> list[Cut]:
    """Halves by each bit of an end's index: the first half against the second, then ever finer stripes.

    The number of cuts is log₂ of `count`, rounded up. Two different ends are in different halves of at least one cut.
    """
    everyone = range(count)
    if count < 2:
        return []
    halves = [Cut(tuple(everyone[: (count + 1) // 2]), tuple(everyone[(count + 1) // 2 :]))]
    for bit in reversed(range((count - 1).bit_length() - 1)):
        first = tuple(end for end in everyone if not end >> bit & 1)
        halves.append(Cut(first, tuple(end for end in everyone if end >> bit & 1)))
    return halves


def lanes(hosts: Sequence[str], between: str, per_host: str) -> list[tuple[int, ...]]:
    """The ranks that are paired with each other; several such groups work at the same time.

    hosts: of each rank. between: auto, hosts or ranks; per_host: one (a lane of every host's first rank) or all (lane k
    has every host's k-th rank). Raises BadInput if there is one host only, or hosts differ in their ranks.
    """
    members: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        members.setdefault(host, []).append(rank)
    if between == "ranks" or (between == "auto" and len(members) == 1):
        if per_host == "all":
            raise BadInput("--per-host all: goes with --between hosts, and ranks are paired here; leave it out")
        return [tuple(range(len(hosts)))]
    if len(members) == 1:
        raise BadInput(
            f"--between hosts: all ranks are on {hosts[0]}; start them on several hosts or use --between ranks"
        )
    if per_host == "one":
        return [tuple(ranks[0] for ranks in members.values())]
    counts = {len(ranks) for ranks in members.values()}
    if len(counts) > 1:
        raise BadInput(
            f"--per-host all: hosts have {min(counts)} to {max(counts)} ranks; start as many on each, or use --per-host one"
        )
    return [tuple(ranks[lane] for ranks in members.values()) for lane in range(counts.pop())]


def spread(pairs: Iterable[Pair], lanes: Sequence[Sequence[int]]) -> list[Pair]:
    """Pairs of ends as pairs of ranks, in every lane."""
    return [(lane[a], lane[b]) for a, b in pairs for lane in lanes]
