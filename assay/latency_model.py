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

from assay.estimates import Estimate, student

FEWEST_SIZES = 4  # two parameters, and two sizes to contradict them
FEWEST_FOR_SWITCH = 8  # two lines and where to cut are five parameters
LEAST_SPAN = 16  # largest size / smallest size; below, α and B trade places without a trace in the residuals
SWITCH_SCATTER = 0.5  # two lines count as decidedly better if sizes scatter less than so much as about one,
SWITCH_RESIDUAL = 0.1  # and one line misses a size by more than this
_PER_LINE = 3  # sizes of each of two lines, at least
_HUBER = 2.0  # scatters beyond which a size loses weight
_ROUNDS = 50
_NOTHING = 1e-9  # a share of the shortest time (or the shortest time per byte) that only rounding leaves of a parameter
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
    """t = alpha + slope·S over some sizes. errors: standard errors of alpha and slope for a relative scatter of 1.

    squares: the weighted sum of squared relative errors. distance: the sum of |ln(measured / predicted)|.
    """

    alpha: float
    slope: float
    errors: tuple[float, float]
    predicted: Array
    squares: float
    distance: float


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
    how = f"t = α + S·f/B over {len(ordered)} sizes, least relative squares with Huber's weights"
    if len(lines) == 2:
        how = f"two lines of {how}, the second from {ordered[cuts[1]].size} B on"
    how += "; 95 % interval from the scatter about the line"
    margin = _margin(ordered, lines)
    alpha, spread = lines[0].alpha, margin * lines[0].errors[0]
    slope, room = lines[-1].slope, margin * lines[-1].errors[1]
    bandwidth = None
    if slope > room:
        bandwidth = Estimate(factor / slope, factor / (slope + room), factor / (slope - room), len(ordered), how)
    model = LatencyModel(
        Estimate(alpha, max(0.0, alpha - spread), alpha + spread, len(ordered), how),
        bandwidth,
        _half_size(ordered, cuts, lines) if bandwidth else None,
        tuple(point.size for point in ordered),
        tuple(point.seconds for point in ordered),
        tuple(float(value) for line in lines for value in line.predicted),
        ordered[cuts[1]].size if len(lines) == 2 else None,
        None if bandwidth else _why_no_bandwidth(ordered, lines[-1].predicted),
    )
    return model, None


def _why_no_bandwidth(points: Sequence[Point], predicted: Array) -> str:
    """predicted: s at the last sizes, by the line whose slope is not known."""
    last = points[-len(predicted) :]
    off = [point.seconds / float(model) - 1 for point, model in zip(last, predicted, strict=True)]
    worst = max(range(len(off)), key=lambda index: abs(math.log1p(off[index])))
    if abs(off[worst]) > SWITCH_RESIDUAL and last[-1].seconds > 2 * last[0].seconds:
        return f"the times follow no line: at {last[worst].size} B they are {off[worst]:+.0%} off the nearest"
    return "time does not grow with size beyond its scatter; larger sizes would show the bandwidth"


def _margin(points: Sequence[Point], lines: Sequence[_Line]) -> float:
    """The half width of a 95 % interval in standard errors for a scatter of 1.

    Student's point times the larger of two relative scatters: of the sizes about their lines, and what the points' own
    intervals say of their times.
    """
    free = _free(len(points), len(lines))
    own = [
        (point.high - point.low) / 2 / _Z / point.seconds
        for point in points
        if point.low is not None and point.high is not None
    ]
    variance = max(sum(line.squares for line in lines) / free, float(np.mean(np.square(own))) if own else 0.0)
    return student(free) * math.sqrt(variance)


def _free(sizes: int, lines: int) -> int:
    """Degrees of freedom: two parameters a line, and where to cut."""
    return sizes - 2 if lines == 1 else sizes - 5


def _lines(points: Sequence[Point]) -> tuple[list[int], list[_Line]]:
    """One line, or two if these are decidedly better, and where each begins; the last cut is the end.

    Scatter is the mean |ln(measured / predicted)| per degree of freedom. In simulations of one line with 2 to 10 %
    noise, with and without an outlier, two lines hardly came below 0.6 of one line's; of two lines with 2 % noise, to
    0.05 to 0.2.
    """
    n = len(points)
    one = _fit(points)
    best: tuple[list[int], list[_Line]] = [0, n], [one]
    times = np.array([point.seconds for point in points])
    if n < FEWEST_FOR_SWITCH or float(np.abs(times / one.predicted - 1).max()) <= SWITCH_RESIDUAL:
        return best
    least = SWITCH_SCATTER * one.distance / _free(n, 1)
    for cut in range(_PER_LINE, n - _PER_LINE + 1):
        if points[cut - 1].size == points[cut].size:
            continue
        two = [_fit(points[:cut]), _fit(points[cut:])]
        scatter = (two[0].distance + two[1].distance) / _free(n, 2)
        if scatter < least:
            least, best = scatter, ([0, cut, n], two)
    return best


def _fit(points: Sequence[Point]) -> _Line:
    """Least squares of the relative error, t / (α + slope·S) − 1: every size counts alike, from bytes to gigabytes.

    Iterated: the weights 1 / predicted² (as for a constant coefficient of variation, McCullagh and Nelder, Generalized
    Linear Models, chapter 8) and Huber's, by which a size further off than two scatters loses weight, come from the fit
    before. A parameter that would be negative is set to 0, the other fitted alone.
    """
    size = np.array([point.size for point in points], dtype=np.float64)
    time = np.array([point.seconds for point in points], dtype=np.float64)
    scale = np.array([time.min(), (time / size).min()])  # columns of like magnitude
    predicted, weight = time, np.ones_like(time)
    for _ in range(_ROUNDS):
        design = np.stack([scale[0] / predicted, scale[1] * size / predicted], axis=1)
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(design * root[:, None], time / predicted * root, rcond=None)[0]
        for negative in np.flatnonzero(solution < _NOTHING):
            column = design[:, 1 - negative]
            solution = np.zeros(2)
            solution[1 - negative] = (weight * column * time / predicted).sum() / (weight * column**2).sum()
        alpha, slope = solution * scale
        before, predicted = predicted, alpha + slope * size
        error = time / predicted - 1
        # The median distance, without the smallest: a fit always comes close to one. 1.4826: of a normal distribution.
        scatter = max(1.4826 * float(np.median(np.sort(np.abs(error))[1:])), 1e-12)
        weight = np.minimum(1.0, _HUBER * scatter / np.maximum(np.abs(error), 1e-300))
        if np.allclose(before, predicted, rtol=1e-10, atol=0):
            break
    errors = np.sqrt(np.diag(np.linalg.pinv((design * weight[:, None]).T @ design))) * scale
    distance = float(np.abs(np.log(time / predicted)).sum())
    squares = float(weight @ error**2)
    return _Line(float(alpha), float(slope), (float(errors[0]), float(errors[1])), predicted, squares, distance)


def _half_size(points: Sequence[Point], cuts: Sequence[int], lines: Sequence[_Line]) -> float | None:
    """The smallest S with t(S) = 2·S·slope of the last line: α·B/f where there is one line."""
    for line, (first, last) in zip(lines, pairwise(cuts), strict=True):
        rest = 2 * lines[-1].slope - line.slope
        if rest <= 0:
            continue
        size = line.alpha / rest
        # Where between two sizes the switch lies is not known; the second line gets what lies between.
        begins = 0.0 if first == 0 else points[first - 1].size
        ends = math.inf if last == len(points) else points[last - 1].size
        if begins <= size <= ends:
            return size
    return None
