"""Rooflines on paper: the chart is well-formed whatever it is given, legible, and the table says how n comes about."""

import math
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.report.axes import Axis, lay
from assay.report.canvas import BOTTOM, HEIGHT, LEFT, TOP, WIDTH
from assay.report.cells import Part
from assay.report.charts import draw
from assay.report.roofline import RoofChart, roofline_part
from assay.roofline import Kind, Roofline, RooflinePoint, StepWork

SVG = "{http://www.w3.org/2000/svg}"
MOST, LEAST = StepWork(1_000_000_000, 600_000_000, 50_000_000), StepWork(1_000_000_000, 150_000_000, 10_000_000)


def pair(case: str, rate: float | None = 40e9, **changed: int) -> list[RooflinePoint]:
    kinds: list[tuple[Kind, StepWork]] = [("counted", MOST), ("analytic", LEAST)]
    return [
        RooflinePoint(case, kind, replace(work, **changed), 4, 1, rate, None if rate else "no step time is known")
        for kind, work in kinds
    ]


def roof(*points: RooflinePoint, peak: float | None = 100e9, bandwidth: float | None = 20e9) -> Roofline:
    peak_name = "measured gemm together, 2 ranks" if peak else "no GEMM rate in float32 was measured"
    return Roofline("cpu", 2, "float32", peak, peak_name, bandwidth, "measured copy together, 2 ranks", points)


def parse(drawn: Roofline) -> ElementTree.Element:
    return ElementTree.fromstring(str(draw(RoofChart("roof", drawn, drawn.points), "c1")))  # noqa: S314 - our own text


def texts(root: ElementTree.Element, kind: str | None = None) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text") if kind is None or text.get("class") == kind]


def hovers(root: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in root.iter(f"{SVG}title")][1:]


def marks(root: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    found = [circle for circle in root.iter(f"{SVG}circle") if circle.get("class") == kind]
    return [(float(circle.get("cx", "nan")), float(circle.get("cy", "nan"))) for circle in found]


@settings(max_examples=150, deadline=None)
@given(
    peak=st.floats(min_value=1e-300),
    bandwidth=st.floats(min_value=1e-300),
    rates=st.lists(st.one_of(st.none(), st.floats()), max_size=8),
    fixed=st.integers(1, 10**40),
    name=st.text(max_size=40),
)
def test_any_roof_gives_well_formed_svg(
    peak: float, bandwidth: float, rates: list[float | None], fixed: int, name: str
) -> None:
    points = [point for index, rate in enumerate(rates) for point in pair(f"{name}{index}", rate, bytes_fixed=fixed)]
    for element in parse(roof(*points, peak=peak, bandwidth=bandwidth)).iter():
        for key in ("x", "y", "cx", "cy", "d", "transform", "width", "height"):
            assert "nan" not in element.get(key, "")
            assert "inf" not in element.get(key, "")


def test_the_roof_has_both_rates_and_its_ridge() -> None:
    root = parse(roof(*pair("train")))
    assert {"100 GFLOP/s", "20.0 GB/s", "ridge 5 FLOP/B"} <= set(texts(root))
    assert "achieved rate (GFLOP/s, log scale)" in texts(root)
    assert "arithmetic intensity in FLOP/B (log scale)" in texts(root)
    assert hovers(root)[:2] == ["roof: 20.0 GB/s × intensity up to 100 GFLOP/s", "ridge 5 FLOP/B"]


def test_points_stand_where_their_numbers_say() -> None:
    root = parse(roof(*pair("train", rate=100e9)))
    (counted,), (analytic,) = marks(root, "mark"), marks(root, "mark hollow")
    legs = next(path.get("d", "") for path in root.iter(f"{SVG}path") if "H" in path.get("d", "") and "L" in path.get("d", ""))  # fmt: skip
    ridge_x, peak_y = map(float, legs.split("L")[1].split("H")[0].split())
    assert counted[1] == analytic[1] == peak_y, "at the peak's height"
    assert counted[0] == pytest.approx(ridge_x, abs=0.11), "4 GFLOP over 800 MB is the ridge's intensity"
    assert analytic[0] > ridge_x


def test_hover_tells_intensity_rate_and_share() -> None:
    words = hovers(parse(roof(*pair("train"))))
    assert words[2:] == [
        "train, counted: 5 FLOP/B, 40.0 GFLOP/s, 40.0 % of 100 GFLOP/s",
        "train, analytic: 21.1 FLOP/B, 40.0 GFLOP/s, 40.0 % of 100 GFLOP/s",
    ]


def test_cases_close_together_keep_their_names_apart_and_on_the_sheet() -> None:
    cases = [f"pretrain-llama-fsdp-of-many-nodes-{number}" for number in range(6)]
    root = parse(roof(*(point for number, case in enumerate(cases) for point in pair(case, 3e9 + number))))
    labels = [text for text in root.iter(f"{SVG}text") if text.get("class") == "label"]
    heights = sorted(float(label.get("y", "nan")) for label in labels)
    assert len(labels) == 6
    assert all(after - before >= 13.9 for before, after in pairwise(heights))
    assert heights[0] >= TOP - 5
    assert heights[-1] <= HEIGHT - BOTTOM + 5
    assert {label.text for label in labels} == {f"pretrain-l…any-nodes-{number}" for number in range(6)}
    for x, y in marks(root, "mark") + marks(root, "mark hollow"):
        assert LEFT <= x <= WIDTH
        assert TOP <= y <= HEIGHT - BOTTOM


def test_what_is_not_drawn_is_said() -> None:
    root = parse(roof(*pair("train"), *pair("silent", rate=None)))
    assert "2 without a rate not drawn" in texts(root)
    assert texts(root, "label") == ["train"]
    assert "no roof: a ceiling is missing" in texts(parse(roof(*pair("train"), peak=None)))


def rows(part: Part, table: int) -> list[list[tuple[str, str]]]:
    return [[(cell.text, cell.note) for cell in row] for row in part.tables[table].rows]


def test_the_table_holds_every_number_of_a_point() -> None:
    (part,) = roofline_part([roof(*pair("train", rate=120e9))])
    assert rows(part, 0) == [
        [("train", "counted"), ("4.00 GFLOP", ""), ("800 MB", "upper bound"), ("5 FLOP/B", ""), ("120 GFLOP/s", ""),
         ("100 GFLOP/s", ""), ("120.0 %", "above the roof")],
        [("train", "analytic"), ("4.00 GFLOP", ""), ("190 MB", "lower bound"), ("21.1 FLOP/B", ""), ("120 GFLOP/s", ""),
         ("100 GFLOP/s", ""), ("120.0 %", "above the roof")],
    ]  # fmt: skip


def test_the_formula_and_its_numbers_stand_beside_the_batch() -> None:
    any_batch = RooflinePoint("big", "counted", replace(MOST, bytes_per_sample=200_000_000), 2, 3, 1e9)
    never = RooflinePoint("small", "counted", replace(MOST, bytes_fixed=0), 2, 1, 1e9)
    (part,) = roofline_part([roof(*pair("train"), any_batch, never)])
    assert "ridge      r = peak / bandwidth = 100 GFLOP/s / 20.0 GB/s = 5 FLOP/B" in part.code
    assert "measured gemm together, 2 ranks" in part.code
    assert "b < r·w / (P·(f − r·a))" in part.tables[1].caption
    assert part.tables[1].captioned
    found = {(row[0][0], row[0][1]): row[1:] for row in rows(part, 1)}
    assert found["train", "counted"] == [
        ("1.00 GFLOP", ""), ("600 MB", ""), ("50.0 MB", ""), ("1", ""), ("4", ""), ("3", "ran with 4"),
    ]  # fmt: skip
    assert found["train", "analytic"][-2:] == [("0.789", ""), ("never", "ran with 4")]
    assert found["big", "counted"][-2:] == [("f ≤ r·a", ""), ("any", "ran with 2")]
    assert found["small", "counted"][-2:] == [("0", ""), ("never", "ran with 2")]


def test_without_a_ceiling_the_work_still_stands_and_the_reason_too() -> None:
    missing = replace(roof(*pair("train"), peak=None), missing=(("old", "counted", "not counted: no meta kernel"),))
    (part,) = roofline_part([missing])
    assert not part.charts
    assert not part.code
    assert "No roof: no GEMM rate in float32 was measured." in part.lead
    table = rows(part, 0)
    assert table[0][:4] == [("train", "counted"), ("4.00 GFLOP", ""), ("800 MB", "upper bound"), ("5 FLOP/B", "")]
    assert table[0][5] == ("NA", "no roof")
    assert table[2][:2] == [("old", "counted"), ("NA", "not counted: no meta kernel")]
    assert [row[-1][0] for row in rows(part, 1)] == ["NA", "NA"]


def test_a_case_without_a_rate_has_its_batch_all_the_same() -> None:
    (part,) = roofline_part([roof(*pair("train", rate=None))])
    assert not part.charts
    assert rows(part, 0)[0][4] == ("NA", "no step time is known")
    assert rows(part, 1)[0][-1] == ("3", "ran with 4")


def test_many_cases_take_several_charts_and_only_the_first_part_explains() -> None:
    points = [point for number in range(8) for point in pair(f"case-{number}")]
    first, second = roofline_part([roof(*points), roof(*pair("train"))])
    charts = [chart for chart in first.charts if isinstance(chart, RoofChart)]
    assert [len(chart.points) for chart in charts] == [12, 4]
    assert "upper bound" in first.lead
    assert second.lead == ""


@settings(max_examples=200, deadline=None)
@given(low=st.floats(1e-12, 1e15), decades=st.floats(0, 9))
def test_a_logarithmic_axis_has_ticks_inside_and_a_few(low: float, decades: float) -> None:
    ruler = lay(Axis("rate", "FLOP/s", log10=True), [low, low * 10**decades])
    assert 1 <= len(ruler.ticks) <= 8 or decades < 0.5
    assert all(-1e-6 <= ruler.place(value) <= 1 + 1e-6 for value, _ in ruler.ticks)
    assert len({label for _, label in ruler.ticks}) == len(ruler.ticks)
    assert math.isclose(ruler.place(low * 10 ** (decades / 2)), 0.5, abs_tol=1e-6)
