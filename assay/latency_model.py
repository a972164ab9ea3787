"""The latency and bandwidth model of a collective: t(S) = α + S·f / B, fitted to a sweep over sizes. Pure functions.

After Hockney's model of a message's time (R. Hockney, The communication challenge for MPP, Parallel Computing 20,
1994): α is what a call costs however small it is, B the bandwidth that it comes to however large. f is the op's busbw
factor (assay/bandwidth.py), so B is a bus bandwidth and shares its assumption: f counts what each link of a flat ring
carries. Trees and in-network reduction move fewer bytes over a link, and their B can exceed the link's rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from assay.estimates import Estimate

FEWEST_SIZES = 4  # of one line: two parameters, and two sizes to contradict them
LEAST_SPAN = 16  # largest size / smallest size; below, α and B trade places without a trace in the residuals
SWITCH_SCATTER = 0.5  # two lines count as decidedly better if sizes scatter at most so much as around one
_HUBER = 2.0  # scatters beyond which a size loses weight
_ROUNDS = 50
_Z = 1.959963984540054  # the normal distribution's 97.5 % point

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One size of a sweep: bytes, seconds per call, and the interval of these, None where there is none."""

    size: int
    seconds: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LatencyModel:
    """A fitted sweep. alpha in s, bandwidth in B/s of the bus; bandwidth is None, with the reason, if no size shows it.

    sizes, measured, predicted: bytes and seconds, in order of size. switch_at: the first size of a second line, where
    the implementation seems to change its protocol or algorithm; alpha is then of the smaller sizes, bandwidth of the
    larger ones. half_size: bytes at which half of the bandwidth is reached, n½; None without a bandwidth, or if the
    predicted rate steps over the half at the switch.
    """

    alpha: Estimate
    bandwidth: Estimate | None
    half_size: float | None
    sizes: tuple[int, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    switch_at: int | None = None
    reason: str | None = None

    @property
    def residuals(self) -> tuple[float, ...]:
        """measured / predicted − 1, size by size."""
        return tuple(real / model - 1 for real, model in zip(self.measured, self.predicted, strict=True))

    @property
    def worst(self) -> tuple[int, float]:
        """The size that the model misses most (in ratio), and its residual."""
        return max(zip(self.sizes, self.residuals, strict=True), key=lambda item: abs(math.log1p(item[1])))


@dataclass(frozen=True)
class _Line:
    """t = alpha + slope·S over sizes[first:last]; the margins are half widths of 95 % intervals."""

    alpha: float
    slope: float
    alpha_margin: float
    slope_margin: float
    predicted: Array
    cost: float


def fit_latency(points: Sequence[Point], factor: float) -> tuple[LatencyModel | None, str | None]:
    """The model of one sweep, or None and the reason why there is none. factor: the op's busbw factor f.

    Raises ValueError on a size or time that is not above 0.
    """
    ordered = sorted(points, key=lambda point: point.size)
    if any(point.size <= 0 or not 0 < point.seconds < math.inf for point in ordered):
        raise ValueError("expected sizes and times above 0")
    sizes = sorted({point.size for point in ordered})
    if factor <= 0:
        return None, "the op moves no bytes"
    if len(sizes) < FEWEST_SIZES:
        return None, f"{len(sizes)} sizes, a fit needs {FEWEST_SIZES}"
    if sizes[-1] < LEAST_SPAN * sizes[0]:
        return None, f"sizes span a factor of {sizes[-1] / sizes[0]:.3g}, a fit needs {LEAST_SPAN}"
    cuts, lines = _lines(ordered)
    alpha, slope = lines[0], lines[-1]
    words = f"t = α + S·f/B over {len(ordered)} sizes, least relative squares with Huber's weights"
    if len(lines) == 2:
        words = f"two lines of {words}, the second from {ordered[cuts[1]].size} B on"
    words += "; 95 % interval from the scatter about the line"
    reason = None
    low, high = slope.slope - slope.slope_margin, slope.slope + slope.slope_margin
    bandwidth = Estimate(factor / slope.slope, factor / high, factor / low, len(ordered), words) if low > 0 else None
    if bandwidth is None:
        reason = "time does not grow with size beyond its scatter; larger sizes would show the bandwidth"
    model = LatencyModel(
        Estimate(
            alpha.alpha,
            max(0.0, alpha.alpha - alpha.alpha_margin),
            alpha.alpha + alpha.alpha_margin,
            len(ordered),
            words,
        ),
        bandwidth,
        _half_size(ordered, cuts, lines) if bandwidth else None,
        tuple(point.size for point in ordered),
        tuple(point.seconds for point in ordered),
        tuple(float(value) for value in np.concatenate([line.predicted for line in lines])),
        ordered[cuts[1]].size if len(lines) == 2 else None,
        reason,
    )
    return model, None


def _lines(points: Sequence[Point]) -> tuple[list[int], list[_Line]]:
    """One line, or the best two if sizes scatter at most half as much about them; the cuts are where lines begin.

    Scatter is the mean distance |ln(measured / predicted)|, per degree of freedom: 2 parameters against 5, the cut
    being one. In simulations of one line with 2 and 10 % noise, with and without an outlier, the best two lines never
    came below 0.7 of it; with a real switch and 2 % noise they came to 0.05 to 0.2 (tests/test_latency_model.py).
    """
    n = len(points)
    one = _fit(points)
    best: tuple[list[int], list[_Line]] = [0, n], [one]
    if n < 2 * FEWEST_SIZES:
        return best
    least = SWITCH_SCATTER * one.cost / (n - 2)
    for cut in range(FEWEST_SIZES, n - FEWEST_SIZES + 1):
        if points[cut - 1].size == points[cut].size:
            continue
        two = [_fit(points[:cut]), _fit(points[cut:])]
        scatter = (two[0].cost + two[1].cost) / (n - 5)
        if scatter < least:
            least, best = scatter, ([0, cut, n], two)
    return best


def _fit(points: Sequence[Point]) -> _Line:
    """Least squares of the relative error, t / (α + slope·S) − 1: every size counts alike, from bytes to gigabytes.

    Iterated: the weights 1 / predicted² (as for a constant coefficient of variation, McCullagh and Nelder, Generalized
    Linear Models, chapter 8) and Huber's, by which a size further off than two scatters loses weight, come from the fit
    before. A parameter that would be negative is set to 0. The margins are Student's for the larger of two variances:
    the scatter about the line, and what the points' own intervals say of their times.
    """
    size = np.array([point.size for point in points], dtype=np.float64)
    time = np.array([point.seconds for point in points], dtype=np.float64)
    free = len(points) - 2
    scale = np.array([time.min(), (time / size).min()])  # columns of like magnitude
    predicted, weight = time, np.ones_like(time)
    for _ in range(_ROUNDS):
        design = np.stack([scale[0] / predicted, scale[1] * size / predicted], axis=1)
        root = np.sqrt(weight)
        # Both columns alone, and together: the least that has no negative parameter.
        solution = np.linalg.lstsq(design * root[:, None], time / predicted * root, rcond=None)[0]
        for negative in np.flatnonzero(solution < 0):
            column = design[:, 1 - negative]
            solution = np.zeros(2)
            solution[1 - negative] = (weight * column * time / predicted).sum() / (weight * column**2).sum()
        before, predicted = predicted, (solution * scale)[0] + (solution * scale)[1] * size
        error = time / predicted - 1
        # The median distance, without the smallest: a fit always comes close to one. 1.4826: of a normal distribution.
        scatter = max(1.4826 * float(np.median(np.sort(np.abs(error))[1:])), 1e-12)
        weight = np.minimum(1.0, _HUBER * scatter / np.maximum(np.abs(error), 1e-300))
        if np.allclose(before, predicted, rtol=1e-10, atol=0):
            break
    own = [(point.high - point.low) / 2 / _Z / point.seconds for point in points if point.low and point.high]
    variance = max(float(weight @ error**2) / free, float(np.mean(np.square(own))) if own else 0.0)
    inverse = np.linalg.pinv((design * weight[:, None]).T @ design)
    margin = _student(free) * np.sqrt(variance * np.diag(inverse)) * scale
    alpha, slope = (float(value) for value in solution * scale)
    cost = float(np.abs(np.log(time / predicted)).sum())
    return _Line(alpha, slope, float(margin[0]), float(margin[1]), predicted, cost)


def _student(free: int) -> float:
    """The 97.5 % point of Student's distribution, to 3 % at 2 degrees of freedom and 0.5 % from 3 on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    terms = (
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
        (79 * _Z**9 + 776 * _Z**7 + 1482 * _Z**5 - 1920 * _Z**3 - 945 * _Z) / 92160,
    )
    return _Z + sum(term / free ** (power + 1) for power, term in enumerate(terms))


def _half_size(points: Sequence[Point], cuts: Sequence[int], lines: Sequence[_Line]) -> float | None:
    """The smallest S with t(S) = 2·S·slope of the last line: α·B/f where there is one line."""
    for line, (first, last) in zip(lines, pairwise(cuts), strict=True):
        rest = 2 * lines[-1].slope - line.slope
        if rest <= 0:
            continue
        size = line.alpha / rest
        begins = 0.0 if first == 0 else points[first].size
        ends = math.inf if last == len(points) else points[last].size
        if begins <= size < ends:
            return size
    return None
