"""Rooflines: a log-log chart of the steps beneath their roof, a table, and the formula with its numbers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from assay.report.axes import Axis, is_drawable, lay
from assay.report.canvas import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH, Frame, axes, svg
from assay.report.cells import Cell, Column, Part, Table, ranks
from assay.report.quantities import number, percent, quantity
from assay.report.text import line
from assay.roofline import Kind, Roofline, RooflinePoint

_CASES = 6  # in one chart; more could not be told apart
_BYTES: Mapping[Kind, str] = {"counted": "upper bound", "analytic": "lower bound"}
_LEAD = (
    "Each step under the roof min(peak, intensity × bandwidth), per device. Its bytes are given twice. Counted: every "
    "operation of an unfused execution reads its inputs and writes its outputs, an upper bound. Analytic: only weights, "
    "gradients, optimizer and the activations kept for backward, a lower bound. What ranks exchange is in neither. The "
    "execution lies between the two, unless caches keep even what the lower bound moves, and so does the batch until which "
    "it is memory-bound. A counted point above the roof says that fusion or caches spared traffic."
)


@dataclass(frozen=True)
class RoofChart:
    """The roof and up to six cases beneath it: counted points filled, analytic points hollow, joined by a line."""

    title: str
    roof: Roofline
    points: Sequence[RooflinePoint]

    def draw(self, ident: str) -> Markup:
        """The chart as one <svg>; without both ceilings it says so instead of drawing a roof."""
        peak, bandwidth, ridge = self.roof.peak, self.roof.bandwidth, self.roof.ridge
        shown = [point for point in self.points if is_drawable(point.intensity, True) and _rate(point) is not None]
        notes = ["● counted: bytes are an upper bound", "○ analytic: bytes are a lower bound"]
        if peak is None or bandwidth is None or ridge is None or not all(map(_is_rate, (peak, bandwidth, ridge))):
            frame = Frame(lay(_X, []), lay(_Y, []))
            return svg(self.title, "no roof", axes(frame), ["no roof: a ceiling is missing"], ident)
        by_case: dict[str, list[RooflinePoint]] = {}
        for point in shown:
            by_case.setdefault(point.case, []).append(point)
        names = [_short(case) for case in by_case]
        right = min(160.0, 20 + 6.4 * max(map(len, names), default=0)) if names else RIGHT
        intensities = [point.intensity for point in shown]
        rates = [rate for point in shown if (rate := _rate(point))]
        # Room for both legs of the roof, and beside and above it for its labels.
        across = [min([*intensities, ridge / 2]) / 4, max([*intensities, ridge * 2]) * 2]
        up = [min([*rates, peak / 5]) / 3, max([*rates, peak]) * 2]
        frame = Frame(lay(_X, across), lay(_Y, up), right)
        parts = [*axes(frame), *_roof(peak, bandwidth, frame, min(across), min(up))]
        heights = _apart([frame.up(_rate(points[0]) or peak) for points in by_case.values()])
        for colour, (name, points, height) in enumerate(zip(names, by_case.values(), heights, strict=True)):
            drawn = [_joined(points, frame, height, name), *(_mark(point, self.roof, frame) for point in points)]
            parts.append(Markup('<g class="series-{}">{}</g>').format(colour % 6, Markup("").join(drawn)))
        missing = len(self.points) - len(shown)
        notes += [f"{missing} without a rate not drawn"] if missing else []
        words = [f"roof {quantity(peak, 'FLOP/s')} and {quantity(bandwidth, 'B/s')}, ridge {_intensity(ridge)}"]
        words += [_words(point, self.roof) for point in shown]
        return svg(self.title, "; ".join(words), parts, notes, ident)


_X = Axis("arithmetic intensity in FLOP/B", "1", log10=True)
_Y = Axis("achieved rate", "FLOP/s", log10=True)


def _is_rate(value: float) -> bool:
    return is_drawable(value, True)


def _rate(point: RooflinePoint) -> float | None:
    return point.rate if point.rate is not None and _is_rate(point.rate) else None


def _intensity(value: float) -> str:
    return f"{number(value)} FLOP/B"  # 1,840 and not 1.84 k: it is compared with the axis


def _short(name: str) -> str:
    """A case's name in at most 22 characters; the middle goes, because names differ at their ends."""
    text = line(name, 200)
    return text if len(text) <= 22 else f"{text[:10]}…{text[-11:]}"


def _roof(peak: float, bandwidth: float, frame: Frame, left: float, floor: float) -> list[Markup]:
    """Both legs of the roof with their rates, and the ridge as a dashed line down to the axis."""
    ridge = peak / bandwidth
    start = max(left, floor / bandwidth)
    foot_x, foot_y = frame.across(start), frame.up(start * bandwidth)
    top_x, top_y, end = frame.across(ridge), frame.up(peak), WIDTH - frame.right
    angle = math.degrees(math.atan2(foot_y - top_y, top_x - foot_x))
    words = f"roof: {quantity(bandwidth, 'B/s')} × intensity up to {quantity(peak, 'FLOP/s')}"
    legs = Markup(
        '<g class="roof"><title>{}</title><path d="M{:.1f} {:.1f}L{:.1f} {:.1f}H{:.1f}"/>'
        '<text class="end" x="{:.1f}" y="{:.1f}">{}</text>'
        '<text transform="translate({:.1f} {:.1f}) rotate({:.1f})" x="16" y="-5">{}</text></g>'
    )
    dashed = Markup(
        '<g class="rule"><title>{}</title><path d="M{:.1f} {:.1f}V{}"/>'
        '<text class="{}" x="{:.1f}" y="{:.1f}">{}</text></g>'
    )
    label = f"ridge {_intensity(ridge)}"
    fits = end - top_x > 6.4 * len(label) + 8
    return [
        legs.format(
            words, foot_x, foot_y, top_x, top_y, end, end, top_y - 6, quantity(peak, "FLOP/s"), foot_x, foot_y, -angle, quantity(bandwidth, "B/s")
        ),
        dashed.format(
            label, top_x, top_y, HEIGHT - BOTTOM, "" if fits else "end", top_x + (5 if fits else -5), HEIGHT - BOTTOM - 6, label
        ),
    ]  # fmt: skip


def _joined(points: Sequence[RooflinePoint], frame: Frame, height: float, name: str) -> Markup:
    """The thin line through a case's points and on to its name at the right."""
    places = [(frame.across(point.intensity), frame.up(_rate(point) or 0)) for point in points]
    end = WIDTH - frame.right
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in sorted(places))
    lead = f"M{max(places)[0]:.1f} {max(places)[1]:.1f}L{end + 6:.1f} {height:.1f}"
    text = Markup(
        '<path class="join" d="{}"/><path class="lead-line" d="{}"/><text class="label" x="{:.1f}" y="{:.1f}">{}</text>'
    )
    return text.format(path, lead, end + 9, height + 4, name)


def _mark(point: RooflinePoint, roof: Roofline, frame: Frame) -> Markup:
    x, y = frame.across(point.intensity), frame.up(_rate(point) or 0)
    mark = "mark" if point.kind == "counted" else "mark hollow"
    shape = Markup(
        '<g class="point"><title>{}</title><circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.6"/>'
        '<circle class="reach" cx="{:.1f}" cy="{:.1f}" r="9"/></g>'
    )
    return shape.format(_words(point, roof), mark, x, y, x, y)


def _words(point: RooflinePoint, roof: Roofline) -> str:
    top = roof.attainable(point)
    share = f", {percent(point.rate / top)} of {quantity(top, 'FLOP/s')}" if point.rate and top else ""
    rate = f"{_intensity(point.intensity)}, {quantity(point.rate, 'FLOP/s')}"
    return f"{line(point.case, 80)}, {point.kind}: {rate}{share}"


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights of labels, moved apart where they would overlap, in the order given."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    moved, lowest = [0.0] * len(heights), TOP - 14.0
    for place, index in enumerate(order):
        room = HEIGHT - BOTTOM - 14.0 * (len(order) - 1 - place)
        lowest = max(lowest + 14, min(heights[index], room))
        moved[index] = lowest
    return moved


def roofline_part(roofs: Iterable[Roofline]) -> list[Part]:
    """One part per roof: formula with its numbers, chart, points, and thresholds. The first explains them all."""
    parts: list[Part] = []
    for roof in roofs:
        title = f"Roofline, {roof.device}, {ranks(roof.ranks)}, {roof.dtype}"
        reasons = [] if roof.ridge else [f"No roof: {roof.peak_name if roof.peak is None else roof.bandwidth_name}."]
        lead = " ".join([*([] if parts else [_LEAD]), *reasons])
        tables = [_points(title, roof)] if roof.points or roof.missing else []
        tables += [_thresholds(title, roof)] if roof.points else []
        parts.append(Part(title, lead, _charts(roof), tables, _formula(roof)))
    return parts


def _charts(roof: Roofline) -> list[RoofChart]:
    if roof.ridge is None:
        return []
    cases = list(dict.fromkeys(point.case for point in roof.points if _rate(point)))
    groups = [cases[first : first + _CASES] for first in range(0, len(cases), _CASES)]
    title = "Achieved rate under the roof"
    return [RoofChart(title, roof, [point for point in roof.points if point.case in group]) for group in groups]


def _formula(roof: Roofline) -> str:
    if roof.ridge is None or roof.peak is None or roof.bandwidth is None:
        return ""
    peak, bandwidth = quantity(roof.peak, "FLOP/s"), quantity(roof.bandwidth, "B/s")
    return (
        f"peak       {peak}, {roof.peak_name}\n"
        f"bandwidth  {bandwidth}, {roof.bandwidth_name}, bytes read plus written\n"
        f"ridge      r = peak / bandwidth = {peak} / {bandwidth} = {_intensity(roof.ridge)}"
    )


def _points(title: str, roof: Roofline) -> Table:
    names = ("FLOPs per step", "Bytes per step", "Intensity", "Achieved", "Attainable", "Share of attainable")
    columns = [Column("Case"), *(Column(name, numeric=True) for name in names)]
    rows = [_point_row(point, roof) for point in roof.points]
    blank = [_NOTHING] * (len(columns) - 2)
    rows += [[Cell(case, kind), Cell("NA", reason, "quiet"), *blank] for case, kind, reason in roof.missing]
    return Table(f"{title}: steps per device", columns, rows)


_NOTHING = Cell("–", "", "quiet")


def _point_row(point: RooflinePoint, roof: Roofline) -> list[Cell]:
    top = roof.attainable(point)
    share = _NOTHING
    if point.rate and top:
        share = Cell(percent(point.rate / top), "above the roof" if point.rate > top else "")
    return [
        Cell(point.case, point.kind),
        Cell(quantity(point.flops, "FLOP")),
        Cell(quantity(point.bytes, "B"), _BYTES[point.kind]),
        Cell(_intensity(point.intensity)),
        Cell(quantity(point.rate, "FLOP/s")) if point.rate else Cell("NA", point.reason or "", "quiet"),
        Cell(quantity(top, "FLOP/s")) if top else Cell("NA", "no roof", "quiet"),
        share,
    ]


def _thresholds(title: str, roof: Roofline) -> Table:
    """Up to which micro batch memory bounds each case's step, with every number that goes into it."""
    caption = (
        f"{title}: a step of P passes of micro batch b does f·b·P FLOP and moves w + a·b·P bytes, so it is memory-bound "
        "while f·b·P / (w + a·b·P) < r, that is while b < r·w / (P·(f − r·a))"
    )
    names = ("f, per sample", "w, per step", "a, per sample", "P", "b below", "Memory-bound until micro batch")
    columns = [Column("Case"), *(Column(name, numeric=True) for name in names)]
    rows = []
    for point in roof.points:
        work = point.work
        rows.append(
            [
                Cell(point.case, point.kind),
                Cell(quantity(work.flops_per_sample, "FLOP")),
                Cell(quantity(work.bytes_fixed, "B")),
                Cell(quantity(work.bytes_per_sample, "B")),
                Cell(f"{point.passes:,}"),
                Cell(_threshold(point, roof.ridge)),
                Cell(_until(point, roof.ridge), f"ran with {point.micro_batch:,}"),
            ]
        )
    return Table(caption, columns, rows, captioned=True)


def _threshold(point: RooflinePoint, ridge: float | None) -> str:
    if ridge is None:
        return "NA"
    left = point.work.flops_per_sample - ridge * point.work.bytes_per_sample
    return number(ridge * point.work.bytes_fixed / (point.passes * left)) if left > 0 else "f ≤ r·a"


def _until(point: RooflinePoint, ridge: float | None) -> str:
    if ridge is None:
        return "NA"
    until = point.memory_bound_until(ridge)
    return "any" if until is None else f"{until:,}" if until else "never"
