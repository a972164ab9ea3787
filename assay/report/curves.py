"""Line charts: curves with intervals over one x axis, as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from assay.report.axes import Axis, is_drawable, lay
from assay.report.canvas import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, axes, svg
from assay.report.quantities import count_of, quantity, size
from assay.report.text import line

DRAWN_WHOLE = 2000  # longer curves are thinned
BUCKETS = 500
POINTS = 48  # charts of up to so many points show each as a mark
HOVER_STRIPS = 60


@dataclass(frozen=True)
class Series:
    """One line of a chart. low, high: the interval of each point, NaN where there is none. faint: warm-up and the like."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    faint: bool = False


@dataclass(frozen=True)
class LineChart:
    """Curves over one x axis. band: a shaded stretch of x with its name, such as the warm-up."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    band: tuple[float, float, str] | None = None


def draw_lines(chart: LineChart, ident: str) -> Markup:
    """The chart as one <svg>; samples that are not finite are counted beneath it."""
    drawn = [_drawable(series, chart) for series in chart.series]
    missing = sum(len(series.y) for series in chart.series) - sum(len(series.y) for series in drawn)
    heights = [
        value
        for series in drawn
        for values in (series.y, series.low, series.high)
        for value in values
        if is_drawable(value, chart.y.log2 or chart.y.log10)
    ]
    strong = [series for series in drawn if not series.faint]  # these have colours, and names if they are several
    labels = [line(series.label, 18) if len(strong) > 1 else "" for series in strong]
    widest = max(map(len, labels), default=0)
    right = min(150.0, 14 + 7.4 * widest) if widest else RIGHT
    frame = Frame(lay(chart.x, [value for series in drawn for value in series.x]), lay(chart.y, heights), right)
    notes = [f"{count_of(missing, 'non-finite sample')} not drawn"] if missing else []
    if not any(len(series.y) for series in drawn):
        notes.insert(0, "no samples to draw")
    parts = [*_band(chart, frame), *axes(frame), *_direct_labels(strong, labels, frame)]
    few = sum(len(series.y) for series in drawn) <= POINTS
    colours = count()
    for series in drawn:
        parts.append(_curve(series, 0 if series.faint else next(colours) % 6, few, chart, frame))
    return svg(chart.title, _describe_lines(chart, drawn, notes), parts, notes, ident)


def thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most 2 points (the lowest, the highest) per bucket of neighbours, in order; short curves come back whole."""
    if len(y) <= DRAWN_WHOLE:
        return x, y
    kept: list[int] = []
    for bucket in np.array_split(np.arange(len(y)), BUCKETS):
        kept += sorted({int(bucket[np.argmin(y[bucket])]), int(bucket[np.argmax(y[bucket])])})
    return x[kept], y[kept]


def _drawable(series: Series, chart: LineChart) -> Series:
    kept = [
        index
        for index, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if is_drawable(x, chart.x.log2) and is_drawable(y, chart.y.log2 or chart.y.log10)
    ]
    edges = [
        [values[index] if index < len(values) else math.nan for index in kept] for values in (series.low, series.high)
    ]
    return Series(
        series.label, [series.x[i] for i in kept], [series.y[i] for i in kept], edges[0], edges[1], series.faint
    )


def _curve(series: Series, colour: int, few: bool, chart: LineChart, frame: Frame) -> Markup:
    x, y = thin(np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64))
    places = " ".join(f"{frame.across(float(a)):.1f},{frame.up(float(b)):.1f}" for a, b in zip(x, y, strict=True))
    parts = [Markup('<polyline class="curve" points="{}"/>').format(places)] if len(x) > 1 else []
    parts += _marks(series, colour, chart, frame) if few or len(series.x) == 1 else _strips(series, chart, frame)
    kind = "faint" if series.faint else f"series-{colour}"
    return Markup('<g class="{}">{}</g>').format(kind, Markup("").join(parts))


def _marks(series: Series, colour: int, chart: LineChart, frame: Frame) -> list[Markup]:
    """Every point with its interval and, on hover, its values."""
    parts = []
    for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
        across, up = frame.across(x), frame.up(y)
        words = f"{_on_axis(x, chart.x)}: {quantity(y, chart.y.unit, chart.y.metric)}"
        whisker = Markup("")
        logarithmic = chart.y.log2 or chart.y.log10
        if is_drawable(low, logarithmic) and is_drawable(high, logarithmic):
            words += f", interval {quantity(low, chart.y.unit, chart.y.metric)} to "
            words += quantity(high, chart.y.unit, chart.y.metric)
            bottom, top = frame.up(low), frame.up(high)
            whisker = Markup('<path class="whisker" d="M{0:.1f} {1:.1f}V{2:.1f}M{3:.1f} {1:.1f}h6M{3:.1f} {2:.1f}h6"/>')
            whisker = whisker.format(across, bottom, top, across - 3)
        if series.label:
            words = f"{line(series.label, 80)}, {words}"
        parts.append(
            Markup(
                '<g class="point"><title>{}</title>{}{}<circle class="reach" cx="{:.1f}" cy="{:.1f}" r="9"/></g>'
            ).format(words, whisker, _symbol(colour, across, up), across, up)
        )
    return parts


def _symbol(colour: int, x: float, y: float) -> Markup:
    """A mark whose shape, not only its colour, tells the series."""
    outline = (
        "M-3.2 0A3.2 3.2 0 1 1 3.2 0A3.2 3.2 0 1 1 -3.2 0Z",
        "M-3 -3H3V3H-3Z",
        "M0 -4L3.8 3H-3.8Z",
        "M0 -4.2L4.2 0L0 4.2L-4.2 0Z",
        "M0 4L3.8 -3H-3.8Z",
        "M-4 -1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z",
    )[colour]
    return Markup('<path class="mark" d="{}" transform="translate({:.1f} {:.1f})"/>').format(outline, x, y)


def _strips(series: Series, chart: LineChart, frame: Frame) -> list[Markup]:
    """Invisible strips over a long curve that tell, on hover, what lies under them."""
    parts = []
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    for bucket in np.array_split(np.arange(len(x)), min(HOVER_STRIPS, len(x))):
        first, last = float(x[bucket[0]]), float(x[bucket[-1]])
        lowest, highest = float(y[bucket].min()), float(y[bucket].max())
        words = _on_axis(first, chart.x) + (f" to {_on_axis(last, chart.x)}" if last != first else "")
        words += f": {quantity(lowest, chart.y.unit, chart.y.metric)}"
        words += f" to {quantity(highest, chart.y.unit, chart.y.metric)}" if highest != lowest else ""
        left = min(frame.across(first), frame.across(last))
        wide = max(2.0, abs(frame.across(last) - frame.across(first)))
        strip = Markup('<rect class="reach" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>')
        parts.append(strip.format(left, TOP, wide, HEIGHT - TOP - BOTTOM, words))
    return parts


def _on_axis(value: float, axis: Axis) -> str:
    if axis.log2:
        return size(value)
    return f"{axis.unit} {value:,.0f}" if axis.unit == "step" else quantity(value, axis.unit, axis.metric)


def _direct_labels(drawn: Sequence[Series], labels: Sequence[str], frame: Frame) -> list[Markup]:
    """The name of each line at its right end, moved apart where they would overlap."""
    ends = sorted(
        (frame.up(series.y[-1]), number, label)
        for number, (series, label) in enumerate(zip(drawn, labels, strict=True))
        if label and len(series.y)
    )
    parts, lowest = [], TOP - 14.0
    room = HEIGHT - BOTTOM - 14.0 * (len(ends) - 1)
    for index, (height, number, label) in enumerate(ends):
        lowest = max(lowest + 14, min(height, room + 14.0 * index))
        text = Markup('<text class="label series-{}" x="{:.1f}" y="{:.1f}">{}</text>')
        parts.append(text.format(number % 6, WIDTH - frame.right + 9, lowest + 4, label))
    return parts


def _band(chart: LineChart, frame: Frame) -> list[Markup]:
    if chart.band is None or not all(is_drawable(value, chart.x.log2) for value in chart.band[:2]):
        return []
    edges = [min(max(frame.across(value), LEFT), WIDTH - frame.right) for value in chart.band[:2]]
    area = Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>')
    name = Markup('<text class="note" x="{:.1f}" y="{}">{}</text>')
    return [
        area.format(edges[0], TOP, max(1.0, edges[1] - edges[0]), HEIGHT - TOP - BOTTOM),
        name.format(edges[0] + 4, TOP + 12, line(chart.band[2], 40)),
    ]


def _describe_lines(chart: LineChart, drawn: Sequence[Series], notes: Sequence[str]) -> str:
    words = []
    for series in drawn:
        if len(series.y):
            low = quantity(min(series.y), chart.y.unit, chart.y.metric)
            high = quantity(max(series.y), chart.y.unit, chart.y.metric)
            name = f"{line(series.label, 80)}: " if series.label else ""
            words.append(f"{name}{count_of(len(series.y), 'point')}, {low} to {high}")
    return "; ".join([*words, *notes])
