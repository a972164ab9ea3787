"""Overlap: its formulas, and what records become in figures and in the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.overlap import exposed_times, overlap_shares
from assay.record import Header, RankFile, TagValue, encode_block, encode_header
from assay.report.overlap import overlap_part
from assay.scoring.overlap import derive
from assay.scoring.result import CaseResult, Figure, RunResult
from tests.conftest import by_metric, rank_files, value

TIMES = ("compute_time", "communication_time", "both_time")

seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20)


@given(compute=seconds, communication=seconds)
def test_one_is_all_hidden_and_nought_one_after_the_other(compute: list[float], communication: list[float]) -> None:
    length = min(len(compute), len(communication))
    products, collective = np.array(compute[:length]), np.array(communication[:length])
    longer, shorter = np.maximum(products, collective), np.minimum(products, collective)
    close = 1e-9 * longer / shorter + 1e-12
    assert (abs(overlap_shares(products, collective, longer) - 1) <= close).all()
    assert (abs(overlap_shares(products, collective, products + collective)) <= close).all()
    assert (abs(overlap_shares(products, collective, longer + shorter / 2) - 0.5) <= close).all()
    assert (exposed_times(products, products + collective) >= collective * (1 - 1e-9) - 1e-9).all()


def test_what_is_worse_than_one_after_the_other_is_not_cut_off() -> None:
    compute, communication, both = np.array([1.0, 1.0]), np.array([0.5, 0.5]), np.array([2.0, 0.9])
    assert overlap_shares(compute, communication, both) == pytest.approx([-1.0, 1.2])
    assert exposed_times(compute, both) == pytest.approx([1.0, -0.1])


def written(folder: Path, world: int, samples: dict[int, dict[str, list[float | None]]], **more: Any) -> list[RankFile]:
    tags: dict[str, TagValue] = {
        "op": "all_reduce",
        "bytes": 1 << 20,
        "dtype": "float32",
        "backend": "gloo",
        "world": world,
    }
    tags |= {"gemm": 256, "gemm_dtype": "float32", "products": 16}
    tags |= more
    for rank, metrics in samples.items():
        header = Header(rank, world, rank, world, "host", 1, "clock", "cpu", "", "gloo", "comms/overlap", 0.0, 0.0)
        path = folder / f"rank-{rank:05d}.jsonl"
        lines = [] if path.exists() else [encode_header(header)]
        for metric, values in metrics.items():
            reason = "not known" if None in values else None
            unit = "1" if metric == "check_errors" else "s"
            lines.append(
                encode_block(metric, unit, values, tags=tags, first_step=None, t_first=0, t_last=1, reason=reason)
            )
        with path.open("a") as file:
            file.writelines(lines)
    return rank_files(folder)


def of_rank(*, compute: float, communication: float, both: float, rounds: int = 8) -> dict[str, list[float | None]]:
    values = zip(TIMES, (compute, communication, both), strict=True)
    return {**{metric: [one] * rounds for metric, one in values}, "check_errors": [0, 0]}


def test_the_slowest_rank_counts_in_every_round(tmp_path: Path) -> None:
    first = of_rank(compute=1.0, communication=0.5, both=1.0)
    second = of_rank(compute=0.5, communication=1.0, both=1.0)
    first["both_time"][:4] = [1.5] * 4
    second["both_time"][4:] = [1.5] * 4
    found = by_metric(derive(written(tmp_path, 2, {0: first, 1: second}), {}, [])[0], 1 << 20)
    assert [value(found[metric]) for metric in TIMES] == [1.0, 1.0, 1.5]
    assert value(found["overlap_share"]) == 0.5
    assert value(found["exposed_communication"]) == 0.5
    assert found["overlap_share"].estimate is not None
    assert (found["overlap_share"].estimate.low, found["overlap_share"].estimate.samples) == (0.5, 8)
    assert (found["overlap_share"].better, found["exposed_communication"].better) == ("higher", "lower")


def test_within_rounds_a_slow_stretch_of_the_machine_does_no_harm(tmp_path: Path) -> None:
    pace = [1.0] * 5 + [10.0] * 3
    rank: dict[str, list[float | None]] = {
        "compute_time": [1.0 * one for one in pace],
        "communication_time": [0.5 * one for one in pace],
        "both_time": [1.25 * one for one in pace],
        "check_errors": [0.0],
    }
    found = by_metric(derive(written(tmp_path, 1, {0: rank}), {}, [])[0], 1 << 20)
    share = found["overlap_share"].estimate
    assert share is not None
    assert (share.low, share.value, share.high) == pytest.approx((0.5, 0.5, 0.5))


def test_what_is_not_whole_is_unknown_with_the_reason(tmp_path: Path) -> None:
    good = of_rank(compute=1.0, communication=0.5, both=1.0)
    cases: list[tuple[int, dict[int, dict[str, list[float | None]]], str]] = [
        (2, {0: good}, "only 1 of 2 ranks recorded their times"),
        (2, {0: good, 1: {**good, "both_time": [1.0] * 7}}, "ranks recorded different numbers of rounds"),
        (
            1,
            {0: {**good, "compute_time": [1.0] * 7 + [None]}},
            "durations should be above 0 s, and there should be some",
        ),
        (1, {0: {**good, "communication_time": [0.0] * 8}}, "durations should be above 0 s, and there should be some"),
    ]
    for number, (world, samples, reason) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        figures, _ = derive(written(folder, world, samples), {}, [])
        found = by_metric(figures, 1 << 20)
        assert set(found) == {"overlap_share", "exposed_communication", "check_errors"}
        assert (found["overlap_share"].value, found["overlap_share"].reason) == (None, reason)
    assert derive([], {}, []) == ([], [])


def run_of(figures: list[Figure], script: str = "comms/overlap") -> RunResult:
    case = CaseResult("overlap-2", script, 2, {}, None, 1, figures=figures)
    return RunResult("runs/x", {}, [case], [], [])


def test_the_report_shows_every_size(tmp_path: Path) -> None:
    rank = of_rank(compute=1.0, communication=0.5, both=1.75)
    written(tmp_path, 2, {0: rank, 1: rank})
    files = written(tmp_path, 2, {0: rank, 1: rank}, bytes=1 << 24, products=40)
    part = overlap_part(run_of(derive(files, {}, [])[0]))
    assert part is not None
    (table,) = part.tables
    assert table.caption == "all_reduce, float32, gloo, 2 ranks (case overlap-2)"
    assert [(row[0].text, row[0].note) for row in table.rows] == [
        ("1 MiB", "16 × 256³ float32"),
        ("16 MiB", "40 × 256³ float32"),
    ]
    assert [column.title for column in table.columns][1:3] == ["overlap share", "exposed communication"]
    assert [(cell.text, cell.note) for cell in table.rows[0][1:3]] == [
        ("-0.500", "[-0.500, -0.500]"),
        ("750 ms", "[750, 750]"),
    ]
    (chart,) = part.charts
    assert list(chart.series[0].y) == [-0.5, -0.5]  # type: ignore[union-attr] # a line chart
    assert overlap_part(run_of([], script="comms/bench")) is None
