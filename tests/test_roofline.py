"""Rooflines: the formulas against brute force, and points and roofs out of records."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.estimates import Estimate
from assay.record import Block, Header, RankFile
from assay.roofline import Roofline, RooflinePoint, StepWork, attainable, memory_bound_until, ridge
from assay.scoring.result import CaseResult, Figure
from assay.scoring.roofline import rooflines

WORK = StepWork(flops_per_sample=1000, bytes_fixed=600, bytes_per_sample=50)


def test_the_roof_is_the_lower_of_both_ceilings_and_turns_at_the_ridge() -> None:
    assert ridge(100e9, 20e9) == 5.0
    assert attainable(2.5, 100e9, 20e9) == 50e9
    assert attainable(5.0, 100e9, 20e9) == 100e9
    assert attainable(80.0, 100e9, 20e9) == 100e9


def test_work_is_linear_in_the_samples() -> None:
    assert [WORK.flops(n) for n in (1, 4)] == [1000, 4000]
    assert [WORK.bytes(n) for n in (1, 4)] == [650, 800]
    assert WORK.intensity(4) == 5.0


@pytest.mark.parametrize(
    ("work", "ridge", "expected"),
    [
        ((1000, 600, 50), 5.0, 3),  # b < 5·600 / (1000 − 250) = 4: at 4 the step lies on the ridge, no longer below
        ((1000, 601, 50), 5.0, 4),
        ((1000, 599, 50), 5.0, 3),
        ((1000, 100, 0), 10.0, 0),  # b < 1
        ((1000, 101, 0), 10.0, 1),
        ((1000, 0, 50), 5.0, 0),  # 20 FLOP/B whatever the batch
        ((1000, 1, 200), 5.0, None),  # I(b) nears the ridge and never gets there
        ((1000, 1, 201), 5.0, None),
        ((1000, 0, 200), 5.0, 0),  # on the ridge itself is not below it
        ((1000, 0, 201), 5.0, None),
        ((10**30, 10**30, 0), 7.0, 6),  # beyond what a float holds exactly
    ],
)
def test_thresholds_are_exact(work: tuple[int, int, int], ridge: float, expected: int | None) -> None:
    assert memory_bound_until(*work, ridge) == expected


@given(
    flops=st.integers(1, 400),
    fixed=st.integers(0, 60),
    moved=st.integers(0, 40),
    ridge=st.one_of(st.integers(1, 12).map(float), st.floats(0.05, 20)),
)
def test_thresholds_agree_with_brute_force(flops: int, fixed: int, moved: int, ridge: float) -> None:
    if fixed + moved == 0:
        with pytest.raises(ValueError, match="no roofline"):
            memory_bound_until(flops, fixed, moved, ridge)
        return
    until = memory_bound_until(flops, fixed, moved, ridge)
    below = [b for b in range(1, 300) if Fraction(flops * b, fixed + moved * b) < Fraction(ridge)]
    if until is None:
        assert below == list(range(1, 300))
    else:
        assert until >= 0
        assert below == list(range(1, min(until, 299) + 1)), "memory-bound exactly up to the threshold"


@pytest.mark.parametrize("bad", [(0, 1, 1, 1.0), (1, -1, 1, 1.0), (1, 1, 1, 0.0), (1, 1, 1, float("nan"))])
def test_work_that_makes_no_sense_is_refused(bad: tuple[int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="no roofline"):
        memory_bound_until(*bad)


@pytest.mark.parametrize(("passes", "until"), [(1, 15), (2, 7), (4, 3), (16, 0)])
def test_more_passes_share_the_fixed_bytes(passes: int, until: int) -> None:
    # 16 samples a step reach the ridge: 5·2400 / (1000 − 250).
    point = RooflinePoint("case", "counted", replace(WORK, bytes_fixed=2400), 4, passes, 1.0)
    assert point.memory_bound_until(5.0) == until
    assert point.samples == 4 * passes


def records(*, dtype: str = "float32", ranks: int = 2, counted: bool = True, **changed: Any) -> list[RankFile]:
    """Records of `ranks` ranks, as workloads/pretrain.py leaves them."""
    tags = {"dtype": dtype, **vars(WORK), "micro_batch": 4, "passes": 2, **changed}
    blocks = [
        Block("step_flops_counted", "FLOP", np.array([8000.0]), tags)
        if counted
        else Block("step_flops_counted", "FLOP", np.array([np.nan]), {"dtype": dtype}, reason="not counted: no meta"),
        Block("step_flops_analytic", "FLOP", np.array([8000.0]), {**tags, "bytes_fixed": 300}),
    ]
    header = Header(0, ranks, 0, ranks, "host", 1, "clock", "cpu", "CPU", "gloo", "workloads/pretrain", 0.0, 0.0)
    return [
        RankFile(Path(f"rank-{rank}"), replace(header, rank=rank), blocks if rank == 0 else [], [], False)
        for rank in range(ranks)
    ]


def case(name: str = "train", step: float | None = 2.0) -> CaseResult:
    estimate = None if step is None else Estimate(step, None, None, 9, "median")
    figures = [Figure("step_time_p50", "s", estimate, {}, reason=None if step else "only 1 of 2 ranks")]
    return CaseResult(name, "workloads/pretrain", 2, {}, None, 1, figures)


def ceiling(metric: str, value: float, ranks: int = 2, dtype: str | None = None) -> Figure:
    tags = {"loaded": "together" if ranks > 1 else "alone", "ranks": ranks, "device": "cpu"}
    tags |= {"dtype": dtype} if dtype else {}
    return Figure(metric, "1", Estimate(value, None, None, 9, "best tenth"), tags)


LIMITS = [
    ceiling("gemm_rate", 10_000.0, dtype="float32"),
    ceiling("gemm_rate", 40_000.0, dtype="bfloat16"),
    ceiling("gemm_rate", 90_000.0, ranks=1, dtype="float32"),
    ceiling("copy_rate", 2_000.0),
    ceiling("copy_rate", 3_000.0, ranks=1),
]


def test_points_come_from_records_and_the_roof_from_the_ceilings_of_as_many_ranks() -> None:
    (roof,) = rooflines([(case(), records())], LIMITS)
    assert (roof.device, roof.ranks, roof.dtype) == ("cpu", 2, "float32")
    assert (roof.peak, roof.bandwidth, roof.ridge) == (10_000.0, 2_000.0, 5.0)
    counted, analytic = roof.points
    assert (counted.kind, analytic.kind) == ("counted", "analytic")
    assert (counted.flops, counted.bytes, counted.intensity) == (8000, 1000, 8.0)
    assert counted.rate == 4000.0, "FLOPs of a step over its median time"
    assert roof.attainable(counted) == 10_000.0
    assert analytic.bytes == 700
    assert (counted.memory_bound_until(5.0), analytic.memory_bound_until(5.0)) == (1, 0)


def test_cases_share_a_roof_only_where_device_ranks_and_type_agree() -> None:
    cases = [
        (case("a"), records()),
        (case("b"), records(dtype="bfloat16")),
        (case("c"), records(ranks=1)),
        (case("d"), records()),
        (case("old"), [replace(file, blocks=[]) for file in records()]),
    ]
    found = {(roof.ranks, roof.dtype): [point.case for point in roof.points] for roof in rooflines(cases, LIMITS)}
    assert found == {
        (1, "float32"): ["c", "c"],
        (2, "bfloat16"): ["b", "b"],
        (2, "float32"): ["a", "a", "d", "d"],
    }


def test_what_is_missing_has_its_reason() -> None:
    (roof,) = rooflines([(case(step=None), records(counted=False))], [ceiling("copy_rate", 2_000.0)])
    assert (roof.peak, roof.ridge) == (None, None)
    assert "no GEMM rate in float32" in roof.peak_name
    assert roof.missing == (("train", "counted", "not counted: no meta"),)
    (analytic,) = roof.points
    assert (analytic.rate, analytic.reason) == (None, "only 1 of 2 ranks")
    assert roof.attainable(analytic) is None


@pytest.mark.parametrize(
    "changed",
    [{"bytes_fixed": None}, {"bytes_fixed": "many"}, {"flops_per_sample": -1}, {"micro_batch": 0}, {"passes": True}],
)
def test_records_that_make_no_sense_give_no_point(changed: dict[str, Any]) -> None:
    roof: Roofline = rooflines([(case(), records(**changed))], LIMITS)[0]
    assert ("train", "counted", "the recorded work does not make sense") in roof.missing
    assert "counted" not in {point.kind for point in roof.points}
