"""The sheet that charts are drawn on: its measures, its axes and the <svg> around them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup, escape

from assay.report.axes import Ruler
from assay.report.text import line

WIDTH, HEIGHT = 440, 270  # SVG units; the page shows them at about 1 unit = 1 px
TOP, BOTTOM, LEFT, RIGHT = 30, 44, 50, 14


class Drawing(Protocol):
    """A chart that draws itself."""

    @property
    def title(self) -> str:
        """What stands above it."""

    def draw(self, ident: str) -> Markup:
        """The chart as one <svg>. ident: unique on the page."""


@dataclass(frozen=True)
class Frame:
    """Rulers laid over the drawing area; `right` leaves room for direct labels."""

    x: Ruler
    y: Ruler
    right: float = RIGHT

    def across(self, value: float) -> float:
        """Where x = `value` lies, in SVG units."""
        return LEFT + self.x.place(value) * (WIDTH - LEFT - self.right)

    def up(self, value: float) -> float:
        """Where y = `value` lies, in SVG units."""
        return HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)


def axes(frame: Frame) -> list[Markup]:
    """Grid, axes, tick labels and both headings with their units."""
    floor, right = HEIGHT - BOTTOM, WIDTH - frame.right
    parts = [Markup('<text class="heading" x="0" y="12">{}</text>').format(frame.y.heading)]
    for value, label in frame.y.ticks:
        up = frame.up(value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{:.1f}"/>').format(LEFT, up, right))
        parts.append(Markup('<text class="tick-y" x="{}" y="{:.1f}">{}</text>').format(LEFT - 7, up + 3.5, label))
    parts.append(Markup('<path class="axis" d="M{} {}H{:.1f}"/>').format(LEFT, floor, right))
    for value, label in frame.x.ticks:
        across = frame.across(value)
        parts.append(Markup('<path class="axis" d="M{:.1f} {}v4"/>').format(across, floor))
        parts.append(Markup('<text class="tick-x" x="{:.1f}" y="{}">{}</text>').format(across, floor + 17, label))
    middle = (LEFT + right) / 2
    parts.append(
        Markup('<text class="heading middle" x="{:.1f}" y="{}">{}</text>').format(middle, HEIGHT - 8, frame.x.heading)
    )
    return parts


def svg(title: str, description: str, parts: Iterable[Markup], notes: Sequence[str], ident: str) -> Markup:
    """One <svg> of `parts`, with title and description; `notes` stand beneath, one a line."""
    tall = HEIGHT + 16 * len(notes)
    remarks = [
        Markup('<text class="note" x="0" y="{}">{}</text>').format(HEIGHT + 10 + 16 * index, note)
        for index, note in enumerate(notes)
    ]
    frame = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img"'
        ' aria-labelledby="{2}-title {2}-desc"><title id="{2}-title">{3}</title><desc id="{2}-desc">{4}</desc>{5}</svg>'
    )
    body = Markup("").join([*parts, *remarks])
    return frame.format(WIDTH, tall, escape(ident), line(title, 200), description, body)
