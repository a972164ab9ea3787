"""What is selected for a report: grouping of sweeps, key figures, and metrics that nobody foresaw."""

from dataclasses import replace

import numpy as np
import pytest

from assay.estimates import Estimate
from assay.report.cells import Chapter
from assay.report.charts import Histogram, LineChart
from assay.report.communication import short_labels, sweeps
from assay.report.tables import chapters
from assay.report.verdict import key_figures, verdict
from assay.rundir import Status
from assay.scoring.result import CaseResult, Curve, Doubt, Figure, RunResult, Scorecard, Section
from tests.report_sample import SIZES, sample_result


def one(value: float) -> Estimate:
    return Estimate(value, None, None, 1, "single reading")


def swept(name: str, **tags: object) -> CaseResult:
    figures = [
        Figure("busbw", "B/s", one(1e9 * place), {"op": "all_reduce", "bytes": size, **tags})
        for place, size in enumerate((1 << 20, 1 << 10, 1 << 15), 1)
    ]
    return CaseResult(name, "comms/bench.py", 8, {}, None, 1, figures)


def run_of(*cases: CaseResult) -> RunResult:
    return RunResult("runs/x", {}, list(cases), [], [])


def chapter(result: RunResult, anchor: str) -> Chapter:
    return next(chapter for chapter in chapters(result) if chapter.anchor == anchor)


def words(chapter: Chapter) -> list[list[str]]:
    tables = [table for part in chapter.parts for table in part.tables]
    return [[f"{cell.text} {cell.note}".strip() for cell in row] for table in tables for row in table.rows]


def test_a_sweep_is_in_order_of_size_and_knows_its_best() -> None:
    (sweep,) = sweeps(run_of(swept("a", backend="gloo")))
    assert list(sweep.points) == [1 << 10, 1 << 15, 1 << 20]
    best = sweep.best()
    assert best is not None
    assert (best[0], best[1].value) == (1 << 15, 3e9)


@pytest.mark.parametrize(
    ("tags", "labels"),
    [
        ([{"world": 4}, {"world": 8}], ["4 ranks", "8 ranks"]),
        ([{"world": 8, "backend": "gloo"}, {"world": 8, "backend": "mpi"}], ["gloo", "mpi"]),
        (
            [{"world": 4, "dtype": "float32"}, {"world": 8, "dtype": "float32"}, {"world": 8, "dtype": "bfloat16"}],
            ["4 ranks, float32", "8 ranks, float32", "8 ranks, bfloat16"],
        ),
        ([{"world": 8}, {"world": 8}], ["case-0", "case-1"]),
    ],
)
def test_labels_tell_sweeps_apart_in_few_words(tags: list[dict[str, object]], labels: list[str]) -> None:
    cases = [swept(f"case-{number}", **item) for number, item in enumerate(tags)]
    assert short_labels(sweeps(run_of(*cases))) == labels


def test_more_lines_than_can_be_told_apart_are_spread_over_charts() -> None:
    result = run_of(*[swept(f"case-{number}", world=number) for number in range(2, 10)])
    charts = [chart for part in chapter(result, "communication").parts for chart in part.charts]
    assert [len(chart.series) for chart in charts if isinstance(chart, LineChart)] == [6, 2]


def test_unknown_metrics_are_shown_with_their_units() -> None:
    figures = [
        Figure("energy", "J", one(4200.0), {"socket": 1}),
        Figure("jitter", "s", None, {}, reason="the clock is too coarse"),
    ]
    curves = [Curve("power", "W", np.array([90.0, 110.0]))]
    result = run_of(CaseResult("meter", "specs/power.py", 1, {}, None, 1, figures, curves))
    further = chapter(result, "figures")
    assert words(further) == [
        ["energy socket 1", "4.20 kJ", "1", "single reading"],
        ["jitter", "NA the clock is too coarse", "–", "–"],
    ]
    (chart,) = further.parts[0].charts
    assert isinstance(chart, Histogram)
    assert chart.x.unit == "W"


def test_unknown_metrics_of_a_sweep_become_columns() -> None:
    case = swept("a")
    extra = Figure("energy", "J", one(2.0), {"op": "all_reduce", "bytes": 1 << 10})
    result = run_of(replace(case, figures=[*case.figures, extra]))
    table = next(table for part in chapter(result, "communication").parts for table in part.tables)
    assert [column.title for column in table.columns] == ["Size", "busbw", "energy"]
    assert words(chapter(result, "communication"))[0] == ["1 KiB", "2.00 GB/s", "2.00 J"]
    assert words(chapter(result, "communication"))[1][-1] == "NA not recorded"


def test_key_figures_name_the_best_point_of_each_sweep_and_the_figures_of_training() -> None:
    found = [(item.case, item.what) for item in key_figures(sample_result(troubled=False))]
    assert len(found) == 6 + 2 + 3
    assert found[0] == ("comms-8", "all_reduce busbw, 64 MiB, 8 ranks")
    assert found[-3:] == [("train-llama", what) for what in ("TGS", "MFU", "final loss")]
    assert SIZES[-1] == 64 << 20


def test_step_times_are_of_measured_steps_and_marked_by_recorded_figures_only() -> None:
    sample = sample_result()
    charts = chapter(sample, "training").parts[0].charts
    times = next(chart for chart in charts if isinstance(chart, Histogram))
    assert len(times.samples) == 200
    assert [name for name, _ in times.marks] == ["p50", "p95", "p99"]
    bare = replace(sample, cases=[replace(sample.cases[2], figures=[])])
    times = next(chart for chart in chapter(bare, "training").parts[0].charts if isinstance(chart, Histogram))
    assert list(times.marks) == []


def test_a_failed_check_is_marked() -> None:
    tags = {"op": "all_reduce", "bytes": 1024}
    case = CaseResult("a", "x.py", 2, {}, None, 1, [Figure("check_errors", "1", one(3.0), tags)])
    table = next(table for part in chapter(run_of(case), "communication").parts for table in part.tables)
    assert (table.rows[0][1].text, table.rows[0][1].tone) == ("3", "bad")


def test_scores_tell_na_from_zero() -> None:
    rows = words(chapter(sample_result(), "scores"))
    assert rows[1][-1] == "NA not submitted, counts 0"
    assert rows[2][-1] == "0 failed: rank 3 ran out of memory"
    assert rows[3][-1] == "NA the baseline has none"


def test_unscored_runs_show_shares_of_ceilings() -> None:
    scores = chapter(sample_result(scored=False), "scores")
    assert scores.lead.startswith("NA: this run was not held against a baseline.")
    assert all("of " in row[-1] for row in words(scores))


@pytest.mark.parametrize("value", [None, "text", 3, ["list"]])
def test_a_broken_document_is_no_error(value: object) -> None:
    keys = ("suite", "created", "cases", "code", "software", "host", "environment")
    assert chapters(RunResult("runs/x", dict.fromkeys(keys, value), [], [], []))


def test_the_verdict_of_no_case_is_not_good() -> None:
    assert not verdict(run_of()).good


def test_what_all_figures_of_a_case_share_is_said_once() -> None:
    figures = [Figure(metric, "s", one(1.0), {"model": "tiny", "rank": rank}) for rank, metric in enumerate("ab")]
    (table,) = chapter(run_of(CaseResult("a", "x.py", 1, {}, None, 1, figures)), "figures").parts[0].tables
    assert (table.caption, table.captioned) == ("Figures of a: tiny", True)
    assert [row[0].note for row in table.rows] == ["rank 0", "rank 1"]


def test_a_passed_case_without_figures_is_no_key_result() -> None:
    limits = CaseResult("limits", "specs/limits.py", 1, {}, Status("passed", "run", 0, 9.0), 1)
    assert key_figures(run_of(limits)) == []
    lost = replace(limits, status=None)
    assert key_figures(run_of(lost))[0].cell.text == "NA"


def test_doubts_of_one_kind_share_their_advice() -> None:
    doubts = [Doubt("wide_interval", "a", f"busbw {n}", "too wide", "run again") for n in range(3)]
    parts = chapter(replace(run_of(), doubts=doubts), "doubts").parts
    assert [(part.title, part.lead) for part in parts] == [("Wide interval, 3 times", "run again")]
    assert len(parts[0].tables[0].rows) == 3


def test_a_scorecard_without_any_score_still_shows_shares() -> None:
    sample = sample_result()
    card = Scorecard("local", "none", "", [Section("c", "Communication", "Σ", [], None, "no baseline")])
    assert chapter(replace(sample, scorecard=card), "scores").parts[-1].title == "Shares of the measured ceilings"
