"""Medians, percentiles, intervals, the stopping rule and the comparison of two runs. Pure functions of samples.

Intervals are order-statistic (binomial) intervals: they assume no distribution. Successive samples of a machine are
correlated, so that n of them tell only as much as fewer independent ones would: intervals are made for that number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
_Z = 1.959963985  # of the normal distribution, 97.5 %
FEWEST_MEANS = 6  # batches' worth, as many as the median's interval needs
TARGET = 0.02  # half width of the interval, relative to the median, at which sampling may stop
FIRST_LOOK = 40  # samples before the stopping rule first looks
FEWEST_SETTLED = 20  # independent samples' worth below which sampling goes on, however narrow the interval


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


def interval_ranks(n: int, confidence: float = CONFIDENCE, share: float = 0.5) -> tuple[int, int] | None:
    """0-based order statistics (i, j) of n samples that hold a quantile with at least `confidence`; None if n is too small.

    share: below which the quantile has that share of the distribution, 0.5 for the median. The number of samples below
    it is binomial, so X₍ᵢ₎ lies above it with P(K ≤ i) and X₍ⱼ₎ below it with P(K ≥ j+1), K ~ B(n, share); each is at
    most half of what `confidence` leaves. For the median it is the sign test's interval (Conover, Practical
    Nonparametric Statistics, 3.2).
    """
    low, high = _lower_rank(n, confidence, share), _lower_rank(n, confidence, 1 - share)
    return None if low is None or high is None else (low, n - 1 - high)


@lru_cache(maxsize=1024)  # both ends of a median's interval, and many series of one length, ask for the same
def _lower_rank(n: int, confidence: float, share: float) -> int | None:
    # Work with logarithms: binomial coefficients overflow a float for the sample counts of a long run.
    below = 0.0
    best: int | None = None
    for i in range(n):
        below += math.exp(
            math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
            + i * math.log(share) + (n - i) * math.log1p(-share)
        )  # fmt: skip
        if 1 - 2 * below < confidence:
            break
        best = i
    return best


def _inflation(series: NDArray[np.float64]) -> float:
    """How many times as much the mean of `series` varies as the mean of independent values would: 1 + 2·Σ ρₖ, at least 1.

    The larger of two estimates. The first takes the series for an AR(1) process, (1+φ)/(1−φ); it needs few samples. φ
    is the lag-1 autocorrelation, corrected for its bias of about −(1+3φ)/n (Kendall 1954). The second sums
    autocorrelations by pairs of lags until a pair is hardly there, as in Geyer's initial positive sequence (Statistical
    Science 7, 1992); it sees what is weak at lag 1 but lasts, such as a slow drift beneath noise. What independent
    samples show by chance must not widen every interval: an autocorrelation of theirs has a standard error of 1/√n, and
    what is below its standard error is taken for nothing; for the AR(1) process, below 1.64 of them, reached by chance
    once in twenty.
    """
    n = len(series)
    centred = series - series.mean()
    spread = float(centred @ centred)
    if not spread:
        return 1.0
    # Longer lags rest on too few pairs of samples to be told from chance; padding keeps the ends from meeting.
    lags, chance = max(2, n // 5 + 1), 1 / math.sqrt(n)
    spectrum = np.fft.rfft(centred, 2 * n)
    rho = np.fft.irfft(np.abs(spectrum) ** 2, 2 * n)[:lags] / spread
    phi = float(rho[1]) + (1 + 3 * float(rho[1])) / n
    autoregressive = 1.0
    if phi > 1.64 * chance:
        autoregressive = (1 + phi) / (1 - phi) if phi < 1 else float(n)
    total = float(rho[1]) if rho[1] > chance else 0.0
    for lag in range(2, lags - 1, 2):
        pair = float(rho[lag] + rho[lag + 1])
        if pair <= math.sqrt(2) * chance:
            break
        total += pair
    return max(autoregressive, 1 + 2 * total)


def _ranks(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    # One outlier must not hide the correlation of all the others.
    # Equal values share a rank, or a coarse clock's ties would look like a trend.
    _, group, sizes = np.unique(samples, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - sizes / 2)[group], dtype=np.float64)


def independent_count(samples: ArrayLike) -> int:
    """How many independent samples would tell as much about the median: n over the inflation of the ranks, 1 at least.

    Ranks and not the counted samples below the median: their correlation is known from fewer samples, and is a little
    stronger (AR(1) with φ = 0.7: 5.3 against 4.1), which makes up for its not being known exactly. What lies in fewer
    than about 20 samples cannot be seen: their number is right only if they are independent.
    """
    data = np.asarray(samples, dtype=np.float64)
    return max(1, int(data.size / _inflation(_ranks(data)) + 1e-9))


def _held(samples: NDArray[np.float64], count: int, share: float, confidence: float) -> tuple[float, float] | None:
    """The order statistics that hold a quantile where n samples are worth `count` independent ones; None if too few.

    As in Korn and Graubard's interval of a share (Survey Methodology 24, 1998), the binomial is that of the effective
    number; turned into an interval of the quantile as Woodruff did (JASA 47, 1952). Each of the `count` stands for n /
    count samples in a row of their order; the interval ends in the middle of its outermost, rounded outwards.
    """
    ranks = interval_ranks(count, confidence, share)
    if ranks is None:
        return None
    each, ordered = samples.size / count, np.sort(samples)
    low, high = math.floor((ranks[0] + 0.5) * each - 0.5), math.ceil((ranks[1] + 0.5) * each - 0.5)
    return float(ordered[max(low, 0)]), float(ordered[min(high, samples.size - 1)])


def median_interval(samples: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Median of `samples`, in the order taken, with its order-statistic interval. Raises ValueError on no samples."""
    data = np.asarray(samples, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no samples")
    return _quantile(data, float(np.median(data)), "median", independent_count(data), 0.5, confidence)


def percentile_interval(samples: ArrayLike, q: float, confidence: float = CONFIDENCE) -> Estimate:
    """The q-th percentile (0 < q < 100) of `samples`, in the order taken, with its order-statistic interval.

    Correlation counts where it matters, in whether samples lie above the percentile: the inflation is that of this
    series of zeros and ones, so outliers that come in bursts widen the interval. Without an interval where the samples
    are worth too few: a 95 % interval of p95 needs 72 independent ones, of p99 367. Raises ValueError on no samples.
    """
    data = np.asarray(samples, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no samples")
    value = percentile(data, q)
    count = max(1, int(data.size / _inflation((data > value).astype(np.float64)) + 1e-9))
    return _quantile(data, value, f"p{q:g}", count, q / 100, confidence)


def _quantile(
    data: NDArray[np.float64], value: float, name: str, count: int, share: float, confidence: float
) -> Estimate:
    held = _held(data, count, share, confidence)
    if held is None:
        why = "too few for an interval"
        if count < data.size:
            why = f"successive samples too correlated for an interval (worth {count} independent)"
        return Estimate(value, None, None, data.size, f"{name} of {data.size}, {why}")
    worth = "samples" if count == data.size else f"samples, worth {count} independent ones"
    method = f"{name}, {confidence:.0%} order-statistic interval of {data.size} {worth}"
    return Estimate(value, min(held[0], value), max(held[1], value), data.size, method)


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


def student(free: int) -> float:
    """The 97.5 % point of Student's distribution, to 1 % at 2 degrees of freedom and 0.1 % from 3 on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    terms = (
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
        (79 * _Z**9 + 776 * _Z**7 + 1482 * _Z**5 - 1920 * _Z**3 - 945 * _Z) / 92160,
    )
    return _Z + sum(term / float(free ** (power + 1)) for power, term in enumerate(terms))


def mean_of_batches(durations: ArrayLike, calls: int) -> Estimate:
    """Seconds per call from back-to-back batches: all time over all calls, with Student's interval of that mean.

    The batches count as `independent_count` of them. The interval begins at the shortest batch at the least: no mean lies
    below every sample, but half of a wide symmetric interval may. It holds the mean of rare, very long batches less often
    than it says, because those may not have come yet.
    durations: s per batch, one clock around `calls` calls. Raises ValueError on no batches.
    """
    data = np.asarray(durations, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no samples")
    value = float(data.sum()) / (calls * data.size)
    method = f"mean of {data.size} × {calls} calls back to back"
    count = independent_count(data) if data.size > 1 else 1
    if count < FEWEST_MEANS:
        return Estimate(value, None, None, data.size, method + ", too few or too correlated for an interval")
    half = student(count - 1) * float(data.std(ddof=1)) / calls / math.sqrt(count)
    low = max(value - half, float(data.min()) / calls)
    method += f", Student's {CONFIDENCE:.0%} interval of {count} independent batches' worth"
    return Estimate(value, low, value + half, data.size, method)


def next_look(n: int) -> int:
    """The number of samples, above n, at which the stopping rule looks next: 40, 80, 160, …

    Few looks keep the coverage honest: each is one more chance to stop on a lucky narrow interval.
    """
    look = FIRST_LOOK
    while look <= n:
        look *= 2
    return look


def is_settled(samples: ArrayLike, target: float = TARGET) -> bool:
    """Whether the interval's half width is within `target` of the median, and samples are worth enough independent ones.

    How strongly samples are correlated is itself estimated, and worst where they are worth few: an interval that is
    narrow because the correlation was missed must not end the sampling.
    """
    width = median_interval(samples).half_width
    return width is not None and width <= target and independent_count(samples) >= FEWEST_SETTLED


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
