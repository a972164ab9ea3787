"""Charts: never an error, always well-formed, and nothing that a reader needs is lost."""

import math
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.report.charts import Axis, Chart, Histogram, LineChart, Series, draw
from assay.report.curves import DRAWN_WHOLE, thin

SVG = "{http://www.w3.org/2000/svg}"
ANY = st.lists(st.floats(), max_size=60)


def parse(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(str(draw(chart, "c1")))  # noqa: S314 - our own text is what is tested


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def hovers(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}title")][1:]


def bandwidth(*series: Series) -> LineChart:
    return LineChart("all_reduce", Axis("message size", "B", log2=True), Axis("busbw", "B/s", zero=True), series)


@settings(max_examples=150, deadline=None)
@given(y=ANY, x=ANY, log2=st.booleans(), zero=st.booleans(), label=st.text(max_size=30), unit=st.text(max_size=5))
def test_any_curve_gives_well_formed_svg(
    y: list[float], x: list[float], log2: bool, zero: bool, label: str, unit: str
) -> None:
    size = min(len(x), len(y))
    one = Series(label, x[:size], y[:size], y[:size], y[:size])
    axes = Axis("size", "B", log2=log2, tight=not log2), Axis(label, unit, zero=zero)
    chart = LineChart(label, *axes, [one, Series("b", x, x, faint=True), one], band=(0.0, 1.0, label))
    for element in parse(chart).iter():
        for name in ("x", "y", "cx", "cy", "width", "height", "points", "d", "transform"):
            assert "nan" not in element.get(name, "")
            assert "inf" not in element.get(name, "")


@settings(max_examples=150, deadline=None)
@given(samples=ANY, marks=st.lists(st.tuples(st.text(max_size=8), st.floats()), max_size=3), title=st.text(max_size=20))
def test_any_samples_give_a_well_formed_histogram(
    samples: list[float], marks: list[tuple[str, float]], title: str
) -> None:
    root = parse(Histogram(title, Axis(title, "s", tight=True), samples, marks))
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("width", "nan")) > 0
        assert float(bar.get("height", "nan")) >= 0


@pytest.mark.parametrize("samples", [[], [3.0], [3.0] * 50, [0.0], [math.nan], [1e15, 1e15 + 0.125], [5e-324, 0.0]])
def test_degenerate_samples_are_drawn(samples: list[float]) -> None:
    parse(Histogram("times", Axis("step time", "s"), samples))
    parse(LineChart("loss", Axis("step", "step"), Axis("loss", "1"), [Series("", range(len(samples)), samples)]))


def test_sizes_are_labelled_in_binary_units_and_rates_in_one_prefix() -> None:
    sizes = [float(1 << exponent) for exponent in range(10, 31, 2)]
    words = texts(parse(bandwidth(Series("", sizes, [size * 4 for size in sizes]))))
    assert {"1 KiB", "1 MiB", "1 GiB"} <= set(words)
    assert "busbw (GB/s)" in words
    assert "message size (bytes, log₂ scale)" in words
    assert {"0", "1", "2", "3", "4", "5"} <= set(words)


def test_hover_tells_size_value_and_interval() -> None:
    root = parse(bandwidth(Series("", [1024.0, 2048.0], [1e9, 2e9], [0.9e9, math.nan], [1.1e9, math.nan])))
    assert hovers(root) == ["1 KiB: 1.00 GB/s, interval 900 MB/s to 1.10 GB/s", "2 KiB: 2.00 GB/s"]


def test_an_interval_outside_the_points_stays_on_the_sheet() -> None:
    root = parse(bandwidth(Series("", [1024.0], [1e9], [0.2e9], [9e9])))
    whisker = next(path for path in root.iter(f"{SVG}path") if path.get("class") == "whisker")
    heights = [float(part.split("M")[0]) for part in whisker.get("d", "").split("V")[1:]]
    assert all(0 <= height <= 270 for height in heights)


def test_several_lines_are_labelled_at_their_ends_without_overlap() -> None:
    lines = [Series(f"{n} ranks", [1024.0, 2048.0], [1e9, 1e9 + n]) for n in range(2, 8)]
    root = parse(bandwidth(*lines))
    labels = [text for text in root.iter(f"{SVG}text") if text.get("class", "").startswith("label")]
    heights = sorted(float(label.get("y", "nan")) for label in labels)
    assert {label.text for label in labels} == {f"{n} ranks" for n in range(2, 8)}
    assert all(after - before >= 13.9 for before, after in pairwise(heights))
    assert heights[-1] <= 270 - 44 + 5


def test_samples_that_cannot_be_drawn_are_counted() -> None:
    y = [1.0, math.nan, math.inf, 2.0, -math.inf]
    words = texts(parse(LineChart("loss", Axis("step", "step"), Axis("loss", "1"), [Series("", range(5), y)])))
    assert "3 non-finite samples not drawn" in words
    assert "3 non-finite samples not drawn" in texts(parse(Histogram("t", Axis("t", "s"), y)))
    assert "no samples to draw" in texts(parse(Histogram("t", Axis("t", "s"), [])))


def test_a_spike_survives_thinning() -> None:
    y = np.random.default_rng(1).normal(0, 1, 50_000)
    y[31_415] = 40
    y[9_000] = -40
    x, thinned = thin(np.arange(50_000.0), y)
    assert len(thinned) <= DRAWN_WHOLE
    assert (x[thinned == 40], x[thinned == -40]) == (31_415, 9_000)
    assert np.all(np.diff(x) > 0)
    drawn = str(
        draw(LineChart("loss", Axis("step", "step"), Axis("loss", "1"), [Series("", range(50_000), y.tolist())]), "c")
    )
    assert len(drawn) < 40_000
    assert "40" in drawn


def test_a_far_tail_is_left_out_aloud() -> None:
    times = [*np.random.default_rng(2).normal(0.1, 0.002, 500).tolist(), 30.0]
    root = parse(Histogram("step time", Axis("step time", "s"), times, [("p50", 0.1), ("p99", 0.105)]))
    assert "1 sample further right not drawn, up to 30.0 s" in texts(root)
    assert {"p50", "p99"} <= set(texts(root))
    assert sum(int(title.split(": ")[1].split()[0]) for title in hovers(root) if " to " in title) == 500


def test_a_single_sample_far_from_none_is_drawn() -> None:
    root = parse(Histogram("step time", Axis("step time", "s"), [0.25]))
    assert hovers(root) == ["250 ms to 250 ms: 1 sample"]
