"""Numbers as a reader sees them: value, interval and axis ticks share one prefix, and digits that the interval earns."""

import math

from assay.estimates import Estimate
from assay.report.text import line
from assay.units import format_size, si_scale, significant_places

_PERCENT = {
    "mfu",
    "mfu_datasheet",
    "hfu",
    "nsp_accuracy",
    "stolen_share",
    "throttled_share",
    "utilisation_mean",
}  # pure numbers that everybody reads in percent


def scale(value: float, unit: str, metric: str = "") -> tuple[float, str]:
    """The divisor and the unit with which a figure of this size is shown: `2e9, "B/s"` → `1e9, "GB/s"`."""
    unit = line(unit, 40)
    if metric in _PERCENT and unit == "1":
        return 0.01, "%"
    return si_scale(value, unit)


def quantity(value: float | None, unit: str, metric: str = "") -> str:
    """`1.24e9, "B/s"` → `1.24 GB/s`; None → `NA`."""
    if value is None:
        return "NA"
    factor, shown = scale(value, unit, metric)
    scaled = value / factor
    return f"{_reading(scaled)} {shown}" if shown else number(scaled)


def estimate_texts(estimate: Estimate, unit: str, metric: str = "") -> tuple[str, str]:
    """Value with unit, and its interval in the same prefix: `1.240 GB/s`, `[1.238, 1.243]`; no interval: ``."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        return quantity(value, unit, metric), ""
    factor, shown = scale(value, unit, metric)
    value, low, high = value / factor, low / factor, high / factor
    places = significant_places(value)
    # An interval narrower than the last digit would print as [1.24, 1.24].
    if high > low:
        places = max(places, min(significant_places(high - low, 1), places + 2))
    if places > 9 or max(abs(value), abs(low), abs(high)) >= 1e15:
        return f"{number(value)} {shown}".strip(), f"[{number(low)}, {number(high)}]"
    return f"{value:,.{places}f} {shown}".strip(), f"[{low:,.{places}f}, {high:,.{places}f}]"


def number(value: float) -> str:
    """A pure number with three significant digits; counts (0 errors, 2,360,832 parameters) stay whole."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return _reading(value)


def _reading(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-5:
        return f"{value:.2e}"
    return f"{value:,.{significant_places(value)}f}"


def size(count: float) -> str:
    """A message size in its largest exact binary unit: `65536` → `64 KiB`, `1000` → `1,000 B`."""
    if not math.isfinite(count) or count != int(count) or not 0 <= count < 2**80:
        return quantity(count, "B")
    text = format_size(int(count))
    digits = text.rstrip("BKMGTi")
    return f"{int(digits):,} {text[len(digits) :]}"


def percent(share: float | None) -> str:
    """A share of one: `0.734` → `73.4 %`; None → `NA`."""
    if share is None:
        return "NA"
    value = share * 100
    if not math.isfinite(value):
        return number(value)
    return f"{_reading(value)} %" if 0 < abs(value) < 10 else f"{value:,.1f} %"


def count_of(number: int, noun: str) -> str:
    """`1 doubt`, `3 doubts`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
