"""The times of all pairs at one size as a matrix, and each pair's speed against what is usual among its like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.links.rounds import Pair

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ONE_WAY, BOTH_WAYS = "one", "both"
LATENCY_BYTES = 4096  # up to this size a transfer is all latency, and its rate is of no interest


@dataclass(frozen=True)
class Matrix:
    """Times of all pairs at one size. ranks, hosts: of the n ends. times: [n, n], median s from one to the other.

    best: [n, n], median s of the fastest pass: other load slows some passes, a fault slows all. NaN where nothing was
    measured. Both ways at once, times[i, j] = times[j, i].
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    bytes: int
    ways: str
    times: Array
    best: Array

    @property
    def is_latency(self) -> bool:
        """Whether the size is so small that times are latencies."""
        return self.bytes <= LATENCY_BYTES

    @property
    def moved(self) -> int:
        """Bytes that a transfer moves: both ways at once, both count."""
        return self.bytes * (2 if self.ways == BOTH_WAYS else 1)

    @property
    def pairs(self) -> Mask:
        """[n, n]: what was measured, each pair once: both ways at once, the upper triangle only."""
        known = np.isfinite(self.times)
        return np.triu(known) if self.ways == BOTH_WAYS else known

    @property
    def rates(self) -> Array:
        """[n, n], B/s."""
        return self.moved / self.times

    @property
    def latencies(self) -> Array:
        """[n, n], s: one way, half of there and back."""
        return self.times if self.ways == BOTH_WAYS else self.times / 2


def square(ranks: Sequence[int], ways: str, times: Mapping[Pair, float]) -> Array:
    """[n, n] of times (s) by (from, to) in ranks; pairs of other ranks are left out."""
    place = {rank: index for index, rank in enumerate(ranks)}
    found = np.full((len(ranks), len(ranks)), np.nan)
    for (sender, receiver), time in times.items():
        if sender in place and receiver in place and time > 0:
            found[place[sender], place[receiver]] = time
            if ways == BOTH_WAYS:
                found[place[receiver], place[sender]] = time
    return found


def relative_speed(measured: Matrix, times: Array) -> Array:
    """[n, n]: each pair's speed over the usual one of its like: pairs within a host, or pairs between hosts.

    times: those of the matrix that count, `times` or `best`.

    Usual is the median over ends of each end's median over all that it sends and receives (of an even number the higher
    of the middle two). Unlike the median of all pairs it stays with the healthy while fewer than half of the ends are
    slow: 1 slow end of 4 spoils 3 of 6 pairs, but only 1 of 3 of every other end.
    """
    names = np.array(measured.hosts)
    alike = names[:, None] == names[None, :]
    speed = 1 / times
    found = np.full(speed.shape, np.nan)
    for kind in (alike, ~alike):
        chosen = np.where(kind, speed, np.nan)
        typical = [high_median(np.concatenate([sent, got])) for sent, got in zip(chosen, chosen.T, strict=True)]
        usual = high_median(typical)
        found[kind] = speed[kind] / usual
    return found


def high_median(values: ArrayLike) -> float:
    """The median of what is finite, of an even number the higher of the middle two; NaN without any."""
    data = np.asarray(values, dtype=np.float64)
    data = np.sort(data[np.isfinite(data)])
    return float(data[data.size // 2]) if data.size else float("nan")
