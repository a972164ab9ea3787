"""Medians, percentiles, intervals, the stopping rule and the comparison of two runs. Pure functions of samples.

Intervals are order-statistic (binomial) intervals: they assume no distribution. Successive samples of a machine
are correlated, so the interval is taken over medians of blocks that are long enough not to be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
TARGET = 0.02  # half width of the interval, relative to the median, at which sampling may stop
FIRST_LOOK = 40  # samples before the stopping rule first looks
_CORRELATED = 0.1  # lag-1 autocorrelation of block medians above which blocks are made longer


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval. `low`/`high` are None when there are too few samples for the confidence."""

    value: float
    low: float | None
    high: float | None
    samples: int
    method: str

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width relative to `value`; None without an interval."""
        if self.low is None or self.high is None or self.value == 0:
            return None
        return (self.high - self.low) / 2 / abs(self.value)


def percentile(samples: ArrayLike, q: float) -> float:
    """The q-th percentile (0…100) by linear interpolation between order statistics (numpy's default)."""
    return float(np.percentile(np.asarray(samples, dtype=np.float64), q))


# A percentile needs a sample beyond it; below these numbers it would be the maximum under another name.
FEWEST_FOR_PERCENTILE = {95: 20, 99: 100}


def interval_ranks(n: int, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """0-based order statistics (i, j) of n samples that hold the median with at least `confidence`; None if n is too small.

    P(X₍ᵢ₎ ≤ median ≤ X₍ⱼ₎) = Σ C(n,k)/2ⁿ for k = i+1 … j (1-based i+1, j+1): the sign test's interval.
    """
    # Work with logarithms: 2**n overflows a float for the sample counts of a long run.
    below = 0.0
    best: tuple[int, int] | None = None
    log_total = n * math.log(2)
    for i in range((n + 1) // 2):
        below += math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - log_total)
        if 1 - 2 * below < confidence:
            break
        best = (i, n - 1 - i)
    return best


def block_length(samples: NDArray[np.float64]) -> int:
    """Samples per block such that block medians are hardly correlated.

    1 for samples that look independent. Else two correlation times: an AR(1) process with lag-1 autocorrelation φ
    forgets in (1+φ)/(1−φ) samples. φ is estimated from ranks and corrected for its bias of about −(1+3φ)/n; below
    1.64/√n, what independent samples show by chance once in twenty, it is taken for nothing.
    """
    n = len(samples)
    phi = _lag1(samples)
    phi += (1 + 3 * phi) / n
    if phi <= max(_CORRELATED, 1.64 / math.sqrt(n)):
        return 1
    return math.ceil(2 * (1 + phi) / (1 - phi)) if phi < 1 else n


def _block_medians(samples: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    if length == 1:
        return samples
    count = len(samples) // length
    return np.median(samples[: count * length].reshape(count, length), axis=1)


def _lag1(values: NDArray[np.float64]) -> float:
    # Ranks instead of values: one outlier must not hide the correlation of all the others.
    # Equal values share a rank, or a coarse clock's ties would look like a trend.
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - sizes / 2)[group]
    centred = ranks - ranks.mean()
    spread = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / spread if spread else 0.0


def median_interval(samples: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Median of `samples` with the order-statistic interval over block medians. Raises ValueError on no samples."""
    data = np.asarray(samples, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no samples")
    length = block_length(data)
    blocks = np.sort(_block_medians(data, length))
    ranks = interval_ranks(len(blocks), confidence)
    value = float(np.median(data))
    method = f"median, {confidence:.0%} order-statistic interval over {len(blocks)} blocks of {length}"
    if ranks is None:
        why = "too few for an interval" if length == 1 else "successive samples too correlated for an interval"
        return Estimate(value, None, None, data.size, f"median of {data.size}, {why}")
    low, high = float(blocks[ranks[0]]), float(blocks[ranks[1]])
    return Estimate(value, min(low, value), max(high, value), data.size, method)


WINDOWS = 10  # into which the time that runs have in common is cut


def best_window(runs: Sequence[tuple[float, ArrayLike, float]]) -> tuple[float, int]:
    """Work per second and run in the best window of the time that all runs have in common; how many windows there were.

    runs: begin (s), times of successive samples (s), work of a sample. The fastest sample of a run would not do: it may
    be one that it took while the others were not running. (0, 0) for runs that never ran at once.
    """
    edges = [
        begun + np.concatenate([[0.0], np.cumsum(np.asarray(times, dtype=np.float64))]) for begun, times, _ in runs
    ]
    start, end = max(edge[0] for edge in edges), min(edge[-1] for edge in edges)
    if end <= start:
        return 0.0, 0
    # A window that holds less than a sample says nothing of its own.
    windows = max(1, min(WINDOWS, *(int(np.count_nonzero((edge > start) & (edge <= end))) for edge in edges)))
    grid = np.linspace(start, end, windows + 1)
    done = sum(
        work * np.interp(grid, edge, np.arange(edge.size)) for (_, _, work), edge in zip(runs, edges, strict=True)
    )
    return float((np.diff(done) / np.diff(grid)).max()) / len(runs), windows


def mean_of_batches(durations: ArrayLike, calls: int) -> Estimate:
    """Seconds per call from back-to-back batches: all time over all calls; the interval is that of the batches' median.

    durations: s per batch, one clock around `calls` calls. Raises ValueError on no batches.
    """
    data = np.asarray(durations, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no samples")
    spread = median_interval(data / calls)
    value = float(data.sum()) / (calls * data.size)
    method = f"mean of {data.size} × {calls} calls back to back"
    if spread.low is None or spread.high is None:
        return Estimate(value, None, None, data.size, method + ", too few or too correlated for an interval")
    low, high = min(spread.low, value), max(spread.high, value)
    return Estimate(value, low, high, data.size, method + f", {CONFIDENCE:.0%} interval over batches")


def next_look(n: int) -> int:
    """The number of samples, above n, at which the stopping rule looks next: 40, 80, 160, …

    Few looks keep the coverage honest: each is one more chance to stop on a lucky narrow interval.
    """
    look = FIRST_LOOK
    while look <= n:
        look *= 2
    return look


def is_settled(samples: ArrayLike, target: float = TARGET) -> bool:
    """Whether the interval's half width is within `target` of the median, and the blocks behind it are uncorrelated."""
    width = median_interval(samples).half_width
    return width is not None and width <= target


@dataclass(frozen=True)
class Comparison:
    """Ratio B/A with its interval. `verdict` holds for "higher is better"; time-like metrics invert it."""

    ratio: Estimate
    verdict: Literal["higher", "lower", "indistinguishable", "undecided"]


def compare_pairs(a: Sequence[float], b: Sequence[float], *, margin: float = 0.0, metrics: int = 1) -> Comparison:
    """Compare interleaved launches (aᵢ, bᵢ) of two versions by the interval of the median ratio bᵢ/aᵢ.

    `metrics`: how many metrics are compared together (Bonferroni). `margin`: relative difference that still counts as
    equal. Fewer pairs than the confidence needs give "undecided". Raises ValueError on unequal lengths.
    """
    ratios = np.asarray(b, dtype=np.float64) / np.asarray(a, dtype=np.float64)
    if len(a) != len(b) or not len(ratios):
        raise ValueError(f"expected pairs, got {len(a)} and {len(b)} values")
    confidence = 1 - (1 - CONFIDENCE) / metrics
    ranks = interval_ranks(len(ratios), confidence)
    value = float(np.median(ratios))
    if ranks is None:
        return Comparison(Estimate(value, None, None, len(ratios), "too few pairs"), "undecided")
    ordered = np.sort(ratios)
    low, high = float(ordered[ranks[0]]), float(ordered[ranks[1]])
    ratio = Estimate(
        value, low, high, len(ratios), f"median of paired ratios, {confidence:.1%} order-statistic interval"
    )
    if low > 1 + margin:
        return Comparison(ratio, "higher")
    if high < 1 - margin:
        return Comparison(ratio, "lower")
    if margin and low >= 1 - margin and high <= 1 + margin:
        return Comparison(ratio, "indistinguishable")
    return Comparison(ratio, "undecided")


def completion_times(entries: ArrayLike, exits: ArrayLike) -> NDArray[np.float64]:
    """Seconds from the last rank's entry to the last rank's exit, call by call.

    entries, exits: [ranks, calls], s on one common clock.
    """
    enter = np.asarray(entries, dtype=np.float64)
    leave = np.asarray(exits, dtype=np.float64)
    return np.asarray(leave.max(axis=0) - enter.max(axis=0))


def slowest_rank_times(entries: ArrayLike, exits: ArrayLike) -> NDArray[np.float64]:
    """The longest duration over ranks, call by call: what remains when clocks cannot be compared. Includes waiting."""
    return np.asarray((np.asarray(exits, dtype=np.float64) - np.asarray(entries, dtype=np.float64)).max(axis=0))
