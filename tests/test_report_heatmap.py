"""The heat map of links, and its printed form: every pair told, the slow one shown."""

from collections.abc import Collection, Sequence
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.links.matrix import BOTH_WAYS, Matrix, square
from assay.links.rounds import Pair
from assay.links.tables import MOST_COLUMNS, SLOWEST, matrix_lines
from assay.report.heatmap import MOST_CELLS, HeatMap

SVG = "{http://www.w3.org/2000/svg}"


def heat_map(count: int, slow: Collection[Pair] = (), names: Sequence[str] | None = None) -> ElementTree.Element:
    shares = np.ones((count, count))
    np.fill_diagonal(shares, np.nan)
    for pair in slow:
        shares[pair] = 0.1
    ends = [str(end) for end in range(count)]
    chart = HeatMap("rates", ends, names or ends, shares * 2e9, shares, "B/s")
    return ElementTree.fromstring(str(chart.draw("c1")))  # noqa: S314 - our own text is what is tested


def cells(root: ElementTree.Element, level: str = "") -> list[str]:
    return [
        rect.findtext(f"{SVG}title") or ""
        for rect in root.iter(f"{SVG}rect")
        if rect.find(f"{SVG}title") is not None and level in rect.get("class", "")
    ]


def test_the_heat_map_tells_every_pair_and_shows_the_slow_one() -> None:
    root = heat_map(4, [(1, 2)], ["<a>", "b", "c", "d"])
    assert len(cells(root)) == 12
    assert cells(root, "heat-0") == ["b → c: 200 MB/s, 0.1 × the usual speed"]
    assert any(text.startswith("<a> → b: 2.00 GB/s") for text in cells(root, "heat-4"))
    description = root.findtext(f"{SVG}desc") or ""
    assert "1 at below 0.25, 11 at 0.9 to 1.25; slowest: b → c: 200 MB/s" in description
    assert root.get("aria-labelledby") == "c1-title c1-desc"
    numbers = [text.text for text in root.iter(f"{SVG}text") if "heat-text" in text.get("class", "")]
    assert {str(text) for text in numbers} == {"0.200", "2"}


@settings(max_examples=6, deadline=None)
@given(count=st.integers(MOST_CELLS + 1, 200), data=st.data())
def test_a_large_heat_map_never_hides_a_slow_pair(count: int, data: st.DataObject) -> None:
    slow = data.draw(st.permutations(range(count)))[:2]
    root = heat_map(count, [(slow[0], slow[1])])
    assert len(cells(root)) <= MOST_CELLS**2
    assert [text.split(":")[0] for text in cells(root, "heat-0")] == [f"{slow[0]} → {slow[1]}"]
    step = -(-count // MOST_CELLS)
    notes = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "note"]
    assert notes == [f"{count} ends: each square is the slowest of {step} × {step} pairs"]
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("width", "nan")) > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_heat_map_of_nothing_is_drawn(count: int) -> None:
    ends = [str(end) for end in range(count)]
    unknown = np.full((count, count), np.nan)
    root = ElementTree.fromstring(str(HeatMap("", ends, ends, unknown, unknown, "s").draw("c1")))  # noqa: S314 - our text
    assert root.findtext(f"{SVG}desc") == "no pair was measured"


def test_of_a_large_matrix_each_slow_pair_is_printed_once() -> None:
    ends = range(MOST_COLUMNS + 1)
    times = square(ends, BOTH_WAYS, {(a, b): 1 + a + b / 100 for a in ends for b in ends if a < b})
    (told,) = matrix_lines(Matrix(tuple(ends), tuple(map(str, ends)), 1 << 20, BOTH_WAYS, times, times))
    shown = [pair.split()[0] for pair in told.partition("slowest pairs: ")[2].split(", ")]
    assert shown == ["11→12", "10→12", "10→11", "9→12", "9→11"][:SLOWEST]
