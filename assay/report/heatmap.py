"""Heat maps: a square of pairs, each coloured by its share of what is usual, as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from assay.report.canvas import HEIGHT, LEFT, TOP, svg
from assay.report.quantities import count_of, number, quantity, scale
from assay.report.text import line

SIDE = HEIGHT - TOP - 16.0  # of the whole square, SVG units
MOST_CELLS = 64  # a side; more would be too small to point at
MOST_NUMBERS = 6  # ends up to which the cells hold their numbers
MOST_LABELS = 16  # a side

# Upper end of the share of the usual speed → what the legend says. The classes heat-0 … heat-5 stand in report.css.
_STEPS = [(0.25, "below 0.25"), (0.5, "0.25 to 0.5"), (0.7, "0.5 to 0.7"), (0.9, "0.7 to 0.9"), (1.25, "0.9 to 1.25")]
_FASTEST = "above 1.25"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeatMap:
    """Values of all pairs, from the end of the row to that of the column.

    ends: number or short name of each, as an axis shows it; names: as a tooltip says it. values: [n, n] in `unit`.
    shares: [n, n], speed over the usual speed, which gives the colour. NaN: not measured.
    """

    title: str
    ends: Sequence[str]
    names: Sequence[str]
    values: Array
    shares: Array
    unit: str

    def draw(self, ident: str) -> Markup:
        """The map as one <svg>; what a cell stands for, if it is more than one pair, is said beneath."""
        step = math.ceil(len(self.ends) / MOST_CELLS)
        cells = self._cells(step)
        side = SIDE / math.ceil(len(self.ends) / step)
        factor, unit = (
            scale(float(np.nanmedian(self.values)), self.unit) if np.isfinite(self.values).any() else (1.0, "")
        )
        numbers = len(self.ends) <= MOST_NUMBERS
        heading = f"row: from, column: to{f'; {unit}' if numbers and unit else ''}"
        parts = [Markup('<text class="heading" x="0" y="12">{}</text>').format(heading)]
        parts += self._labels(side, step)
        for row, column, i, j in cells:
            parts.append(self._cell(LEFT + column * side, TOP + row * side, side, (i, j), factor if numbers else None))
        parts += _legend()
        notes = []
        if step > 1:
            notes.append(f"{len(self.ends):,} ends: each square is the slowest of {step} × {step} pairs")
        missing = int(np.isnan(self.shares).sum()) - len(self.ends)
        if missing > 0:
            notes.append(f"{count_of(missing, 'pair')} not measured")
        return svg(self.title, self._description(), parts, notes, ident)

    def _cells(self, step: int) -> list[tuple[int, int, int, int]]:
        """(row, column, i, j): where a square stands, and the pair that it shows, the slowest of `step` × `step`."""
        found = []
        for row, top in enumerate(range(0, len(self.ends), step)):
            for column, left in enumerate(range(0, len(self.ends), step)):
                block = self.shares[top : top + step, left : left + step]
                if np.isfinite(block).any():
                    i, j = np.unravel_index(np.nanargmin(block), block.shape)
                    found.append((row, column, top + int(i), left + int(j)))
        return found

    def _cell(self, x: float, y: float, side: float, pair: tuple[int, int], factor: float | None) -> Markup:
        share, value = float(self.shares[pair]), float(self.values[pair])
        rect = Markup(
            '<rect class="heat heat-{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>'
        )
        gap = 1.0 if side > 6 else 0.0
        drawn = rect.format(_level(share), x, y, side - gap, side - gap, self._words(pair))
        if factor is None:
            return drawn
        text = Markup('<text class="middle heat-text{}" x="{:.2f}" y="{:.2f}">{}</text>')
        return drawn + text.format(
            " on-dark" if _level(share) == 0 else "", x + (side - gap) / 2, y + side / 2 + 4, number(value / factor)
        )

    def _words(self, pair: tuple[int, int]) -> str:
        i, j = pair
        value = quantity(float(self.values[pair]), self.unit)
        return (
            f"{line(self.names[i], 80)} → {line(self.names[j], 80)}: {value}, {self.shares[pair]:.2g} × the usual speed"
        )

    def _labels(self, side: float, step: int) -> list[Markup]:
        every = step * math.ceil(math.ceil(len(self.ends) / step) / MOST_LABELS)
        parts = []
        for index in range(0, len(self.ends), every):
            middle = (index // step + 0.5) * side
            label = line(self.ends[index], 6)
            parts.append(
                Markup('<text class="tick-y" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, TOP + middle + 4, label)
            )
            parts.append(
                Markup('<text class="tick-x" x="{:.1f}" y="{}">{}</text>').format(LEFT + middle, TOP - 5, label)
            )
        return parts

    def _description(self) -> str:
        shares = np.where(np.isfinite(self.shares), self.shares, np.inf)
        if not np.isfinite(shares).any():
            return "no pair was measured"
        slowest = np.unravel_index(np.argmin(shares), shares.shape)
        counted = [int((np.isfinite(self.shares) & (levels(self.shares) == level)).sum()) for level in range(6)]
        words = [
            f"{count} at {name}"
            for count, name in zip(counted, [*(name for _, name in _STEPS), _FASTEST], strict=True)
            if count
        ]
        pair = int(slowest[0]), int(slowest[1])
        return f"pairs by their share of the usual speed: {', '.join(words)}; slowest: {self._words(pair)}"


def levels(shares: Array) -> NDArray[np.int64]:
    """The colour step of each share, 0 (slowest) to 5."""
    return np.searchsorted([end for end, _ in _STEPS], shares, side="right")


def _level(share: float) -> int:
    return int(levels(np.array(share)))


def _legend() -> list[Markup]:
    x = LEFT + SIDE + 18
    parts = [
        Markup('<text class="heading" x="{:.1f}" y="{}">{}</text>').format(x, TOP + 10, "share of the usual speed")
    ]
    for level, name in enumerate([*(name for _, name in _STEPS), _FASTEST]):
        y = TOP + 24 + 22 * level
        parts.append(
            Markup('<rect class="heat heat-{}" x="{:.1f}" y="{}" width="14" height="14"/>').format(level, x, y)
        )
        parts.append(Markup('<text x="{:.1f}" y="{}">{}</text>').format(x + 21, y + 11, name))
    return parts
