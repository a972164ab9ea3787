"""The model on paper: its assumption is said, every sweep has its row, and charts are well-formed."""

import math
from dataclasses import replace
from xml.etree import ElementTree

from assay.estimates import Estimate
from assay.report.cells import Part
from assay.report.charts import LineChart, draw
from assay.report.latency import latency_parts
from assay.scoring.result import CaseResult, Figure, RunResult
from tests.report_sample import sample_result

SVG = "{http://www.w3.org/2000/svg}"


def part_of(result: RunResult) -> Part:
    (part,) = latency_parts(result)
    return part


def result_of(times: dict[int, float], **tags: object) -> RunResult:
    figures = [
        Figure(
            "batch_call_time",
            "s",
            Estimate(seconds, seconds * 0.98, seconds * 1.02, 20, "mean"),
            {"op": "all_reduce", "bytes": size, "world": 2, "backend": "mpi4py", "dtype": "float32", **tags},
        )
        for size, seconds in times.items()
    ]
    case = CaseResult("sweep", "comms/bench.py", 2, {}, None, 1, figures)
    return replace(sample_result(), cases=[case])


def rows_of(part: Part) -> list[dict[str, tuple[str, str]]]:
    table = part.tables[0]
    names = [column.title for column in table.columns]
    return [{name: (cell.text, cell.note) for name, cell in zip(names, row, strict=True)} for row in table.rows]


def test_the_lead_states_the_flat_ring() -> None:
    part = part_of(sample_result())
    assert "flat ring" in part.lead
    assert "in-network reduction" in part.lead


def test_every_sweep_has_a_row_with_intervals_and_its_worst_size() -> None:
    rows = rows_of(part_of(sample_result()))
    first = rows[0]
    assert first["Sweep"] == ("all_reduce", "8 ranks, gloo, float32 (case comms-8)")
    assert first["Latency α"][0].endswith("µs")
    assert first["Latency α"][1].startswith("[")
    assert first["Bandwidth B"][0].endswith("GB/s")
    assert first["B of ceiling"][1] == "of copy rate, all ranks together"
    assert first["Worst residual"][1].startswith("at ")
    assert {row["Sweep"][1] for row in rows} > {"4 ranks, gloo, float32 (case comms-4)"}


def test_residuals_stand_under_their_sizes() -> None:
    times = {1024 * 4**step: 20e-6 + 1024 * 4**step / 5e9 for step in range(7)}
    times[1024 * 4**3] *= 1.08
    table = part_of(result_of(times)).tables[1]
    row = {column.title: cell.text for column, cell in zip(table.columns, table.rows[0], strict=True)}
    assert row["64 KiB"] == max(
        row.values(), key=lambda text: float(text.rstrip(" %")) if text[0] == "+" else -math.inf
    )
    assert 6.0 < float(row["64 KiB"].rstrip(" %")) < 8.5


def test_a_switch_is_named_and_half_sizes_outside_the_sweep_are_marked() -> None:
    sizes = [1024 * 4**step for step in range(9)]
    switched = result_of({size: 1e-5 + size / 2e9 if size < 1 << 18 else 3e-5 + size / 1e10 for size in sizes})
    assert rows_of(part_of(switched))[0]["Second line from"] == ("256 KiB", "")
    slow = result_of({size: 1.0 + size / 1e8 for size in sizes})
    assert rows_of(part_of(slow))[0]["n½"] == ("100 MB", "beyond the sweep")


def test_an_unknown_model_says_why_and_has_no_chart() -> None:
    part = part_of(result_of({1024: 1e-5, 4096: 1.1e-5, 1 << 20: 1e-3}))
    (row,) = rows_of(part)
    assert row["Latency α"] == row["Bandwidth B"] == ("NA", "3 sizes, a fit needs 4")
    assert not part.charts
    assert len(part.tables) == 1
    assert latency_parts(result_of({1024: 1e-5})) == []


def test_charts_are_log_log_well_formed_and_escaped() -> None:
    times = {1024 * 4**step: 20e-6 + 1024 * 4**step / 5e9 for step in range(7)}
    (chart,) = part_of(result_of(times, redop='<b>&"')).charts
    assert isinstance(chart, LineChart)
    assert (chart.x.log2, chart.y.log10) == (True, True)
    assert [series.label for series in chart.series] == ["predicted", "measured"]
    root = ElementTree.fromstring(str(draw(chart, "c1")))  # noqa: S314 - our own text
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"predicted", "measured"} <= set(texts)
    assert len(list(root.iter(f"{SVG}polyline"))) == 2
