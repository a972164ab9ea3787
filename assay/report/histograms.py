"""Histograms: how samples are distributed, with named marks such as p50, as SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from assay.report.axes import FARTHEST, Axis, is_drawable, lay
from assay.report.canvas import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, axes, svg
from assay.report.quantities import count_of, quantity
from assay.report.text import line


@dataclass(frozen=True)
class Histogram:
    """How samples are distributed. marks: named values drawn as vertical lines, such as p50."""

    title: str
    x: Axis
    samples: Sequence[float] | NDArray[np.float64]
    marks: Sequence[tuple[str, float]] = field(default_factory=tuple)


def draw_histogram(chart: Histogram, ident: str) -> Markup:
    """The chart as one <svg>; what is not drawn is counted beneath it."""
    data = np.asarray(chart.samples, dtype=np.float64)
    kept = data[np.abs(data) < FARTHEST]  # false for NaN and infinities too
    notes = [f"{count_of(data.size - kept.size, 'non-finite sample')} not drawn"] if kept.size < data.size else []
    if not kept.size:
        frame = Frame(lay(chart.x, []), lay(Axis("samples", "1", zero=True), []))
        return svg(chart.title, "no samples", axes(frame), ["no samples to draw", *notes], ident)
    shown = _without_far_tail(kept)
    if shown.size < kept.size:
        biggest = quantity(float(kept.max()), chart.x.unit, chart.x.metric)
        notes.append(f"{count_of(kept.size - shown.size, 'sample')} further right not drawn, up to {biggest}")
    marks = [(line(name, 20), value) for name, value in chart.marks if is_drawable(value)]
    x = lay(chart.x, [float(shown.min()), float(shown.max()), *(value for _, value in marks)])
    counts, edges = _count(shown)
    frame = Frame(x, lay(Axis("samples", "1", zero=True), [0.0, float(counts.max())]))
    parts = axes(frame)
    for count, left, right in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            parts.append(_bar(count, left, right, chart, frame))
    parts += _mark_lines(marks, chart, frame)
    words = [f"{name} {quantity(value, chart.x.unit, chart.x.metric)}" for name, value in marks]
    return svg(chart.title, "; ".join([count_of(kept.size, "sample"), *words, *notes]), parts, notes, ident)


def _bar(count: int, left: float, right: float, chart: Histogram, frame: Frame) -> Markup:
    begin, end = max(frame.across(left), LEFT), min(frame.across(right), WIDTH - RIGHT)
    low, high = quantity(left, chart.x.unit, chart.x.metric), quantity(right, chart.x.unit, chart.x.metric)
    bar = Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
    top, foot = frame.up(count), frame.up(0)
    return bar.format(
        begin, top, max(1.0, end - begin - 0.6), foot - top, f"{low} to {high}: {count_of(count, 'sample')}"
    )


def _mark_lines(marks: Iterable[tuple[str, float]], chart: Histogram, frame: Frame) -> list[Markup]:
    parts, free = [], [0.0, 0.0]  # two rows of names, so that p95 and p99 do not cover each other
    for name, value in sorted(marks, key=lambda mark: mark[1]):
        across = frame.across(value)
        row = 0 if across >= free[0] else 1
        free[row] = across + 8 * len(name) + 4
        words = f"{name}: {quantity(value, chart.x.unit, chart.x.metric)}"
        group = Markup(
            '<g class="rule"><title>{}</title><path d="M{:.1f} {}V{}"/><text x="{:.1f}" y="{}">{}</text></g>'
        )
        side = across + 3 if across < WIDTH - RIGHT - 8 * len(name) else across - 3 - 7 * len(name)
        parts.append(group.format(words, across, TOP - 2, HEIGHT - BOTTOM, side, TOP + 8 + 13 * row, name))
    return parts


def _without_far_tail(data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drop what lies so far right that it would press all else into one bar; the chart says so."""
    p50, p99 = np.percentile(data, [50, 99])
    limit = p99 + 4 * max(p99 - p50, 0.02 * abs(p50))
    return np.asarray(data[data <= limit])


def _count(data: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Samples per bar, and the bars' edges; one bar where all samples are as good as equal."""
    bins = _bins(data)
    if bins == 1:
        return np.array([data.size]), np.array([data.min(), data.max()])
    return np.histogram(data, bins=bins)


def _bins(data: NDArray[np.float64]) -> int:
    """Freedman–Diaconis, between 8 and 40 bars; 1 where a difference is too small for a float to cut."""
    span = float(data.max() - data.min())
    if span <= 1e-9 * float(np.abs(data).max()) or span < 1e-90:
        return 1
    q1, q3 = np.percentile(data, [25, 75])
    width = 2 * float(q3 - q1) / data.size ** (1 / 3)
    return int(min(40, max(8, span / width))) if width > span / 1000 else 40
