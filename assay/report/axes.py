"""Axes of a chart: the range, nice ticks (1-2-5, powers of two for sizes, decades) and their labels. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from assay.report.quantities import scale, size
from assay.report.text import line

FARTHEST = 1e100  # beyond it, differences overflow; no measurement is there
_STRIDES = (1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Axis:
    """What an axis shows: `title` in words, base `unit`, and how.

    log2: powers of two, labelled as sizes. log10: decades. zero: the axis begins at 0, so that heights can be compared.
    tight: the axis ends with the data instead of with the next tick.
    metric: for units that depend on it (MFU is a pure number shown in percent).
    """

    title: str
    unit: str
    log2: bool = False
    zero: bool = False
    tight: bool = False
    metric: str = ""
    log10: bool = False


@dataclass(frozen=True)
class Ruler:
    """An axis laid over the data: position of a value in 0…1, ticks as (value, label), and the heading with its unit."""

    low: float
    high: float
    log2: bool
    ticks: list[tuple[float, str]]
    heading: str
    log10: bool = False

    def place(self, value: float) -> float:
        """Where `value` lies between `low` (0) and `high` (1)."""
        position = math.log2(value) if self.log2 else math.log10(value) if self.log10 else value
        return (position - self.low) / (self.high - self.low)


def is_drawable(value: float, logarithmic: bool = False) -> bool:
    """Whether a chart can show `value`: finite, not absurdly large, and positive on a logarithmic axis."""
    return math.isfinite(value) and abs(value) < FARTHEST and (value > 0 or not logarithmic)


def lay(axis: Axis, values: Sequence[float]) -> Ruler:
    """The ruler for drawable `values`; without any, a ruler from 0 to 1 (2⁰ to 2¹, 10⁰ to 10¹) without tick labels."""
    if axis.log2:
        return _lay_log2(axis, values)
    if axis.log10:
        return _lay_log10(axis, values)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if axis.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-90):
        # Constant samples: make room around them.
        room = abs(high) * 0.05 if abs(high) > 1e-80 else 1.0
        low, high = low - room, high + room
    step = nice_step(low, high)
    if axis.tight:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        low, high = min(low, first * step), max(high, last * step)
    ticks = [index * step for index in range(first, last + 1)]
    factor, unit = scale(max(abs(low), abs(high)), axis.unit, axis.metric)
    heading = line(f"{axis.title} ({unit})" if unit and unit != axis.title else axis.title)
    labels = [(tick, _label(tick / factor, step / factor)) for tick in ticks] if values else []
    return Ruler(low, high, False, labels, heading)


def nice_step(low: float, high: float, wanted: int = 5) -> float:
    """The distance between ticks, 1, 2 or 5 × 10ⁿ, such that about `wanted` of them fit."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= raw * 0.999), 10 * power)


def binary_ticks(low: float, high: float, most: int = 6) -> list[int]:
    """Exponents of two between low and high (exponents), thinned to at most about `most`."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    stride = next((s for s in _STRIDES if (last - first) // s + 1 <= most), 500)
    return [exponent for exponent in range(first, last + 1) if exponent % stride == 0] or [first]


def _lay_log2(axis: Axis, values: Sequence[float]) -> Ruler:
    exponents = [math.log2(value) for value in values] or [0.0, 1.0]
    low, high = min(exponents), max(exponents)
    if high - low < 1:
        low, high = low - 0.5, high + 0.5
    ticks = [(2.0**exponent, _power(exponent)) for exponent in binary_ticks(low, high)]
    inside = [tick for tick in ticks if low - 1e-6 <= math.log2(tick[0]) <= high + 1e-6]
    return Ruler(low, high, True, inside if values else [], f"{line(axis.title)} (bytes, log₂ scale)")


def _lay_log10(axis: Axis, values: Sequence[float]) -> Ruler:
    low, high = (math.log10(min(values)), math.log10(max(values))) if values else (0.0, 1.0)
    if high - low < 0.5:
        low, high = low - 0.25, high + 0.25
    decades = range(math.floor(low), math.ceil(high) + 1)
    # The fewer the decades, the more ticks within each.
    digits = (1, 2, 5) if high - low < 2 else (1, 3) if high - low < 3.5 else (1,)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    inside = [tick for tick in ticks if low - 1e-6 <= math.log10(tick) <= high + 1e-6]
    factor, unit = scale(10 ** ((low + high) / 2), axis.unit, axis.metric)
    heading = f"{line(axis.title)} ({unit}, log scale)" if unit else f"{line(axis.title)} (log scale)"
    thinned = inside[:: math.ceil(len(inside) / 7) or 1]
    labels = [(tick, _decade(tick / factor)) for tick in thinned] if values else []
    return Ruler(low, high, False, labels, heading, log10=True)


def _decade(value: float) -> str:
    return f"{value:,.0f}" if 0.999 <= value < 1e6 else f"{value:.3g}"


def _power(exponent: int) -> str:
    return size(2.0**exponent) if 0 <= exponent < 60 else f"2^{exponent}"


def _label(value: float, step: float) -> str:
    if abs(value) >= 1e7 or step < 1e-6:
        return f"{value:.3g}"
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{places}f}"
