"""A step's predicted time: its formula, the engines' exchanges, and the table beside what was measured."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.bandwidth import COLLECTIVES
from assay.estimates import Estimate
from assay.memory_estimate import estimate_memory
from assay.options import PretrainOptions
from assay.presets import MODELS, parameters_of
from assay.report.prediction import prediction_part
from assay.scoring.prediction import MEMORY, STEP, with_predictions
from assay.scoring.result import CaseResult, Figure
from assay.step_prediction import Exchange, Line, StepCeilings, StepLoad, StepPrediction, predict_step, step_load
from assay.training.flops import flops_per_token

OPS = ("all_reduce", "all_gather", "reduce_scatter")
N = parameters_of(MODELS["llama-tiny"])


def options(**values: Any) -> PretrainOptions:
    return PretrainOptions(**{"model": "llama-tiny", "seq_len": 64, "global_batch": 16, "micro_batch": 2, **values})


def load(world: int, **values: Any) -> StepLoad:
    return step_load(options(**values), world, flops_per_token(MODELS["llama-tiny"], N, 64))


def exchanges(world: int, **values: Any) -> dict[str, Exchange]:
    return {one.op: one for one in load(world, **values).exchanges}


positive = st.floats(1e-3, 1e3)


@given(positive, positive, positive, positive, st.integers(2, 64))
def test_between_everything_hidden_and_nothing_hidden(
    products: float, update: float, traffic: float, wire: float, ranks: int
) -> None:
    size = 10**12
    of = StepLoad(
        products * 1e12, products * 1e12, int(update * 1e9), int(traffic * 1e9), (Exchange(OPS[0], ranks, size, 5),)
    )
    bandwidth = size * COLLECTIVES[OPS[0]].bus(ranks) / wire
    ceilings = StepCeilings(1e12, 1e9, {(OPS[0], ranks): Line(0.01, bandwidth)})
    found = predict_step(of, ceilings)
    assert isinstance(found, StepPrediction)
    communication = 5 * 0.01 + wire
    assert found.low == pytest.approx(max(products + update, communication), rel=1e-6)
    assert found.high == pytest.approx(products + update + traffic + communication, rel=1e-6)
    assert "not measured" in found.method


def test_a_rank_does_its_share_of_the_work() -> None:
    per_token = flops_per_token(MODELS["llama-tiny"], N, 64)
    assert load(1, engine="none").flops == per_token * 64 * 16
    assert load(4, engine="ddp").flops == per_token * 64 * 4
    again = load(4, engine="ddp", checkpointing=True)
    assert (again.flops, again.executed) == (per_token * 64 * 4, per_token * 64 * 4 * 4 / 3)
    assert load(4, engine="ddp").update == 32 * N
    assert load(4, engine="fsdp").update < 8.1 * N


def test_engines_exchange_what_they_do() -> None:
    assert exchanges(1, engine="none") == {}
    assert exchanges(4, engine="ddp")["all_reduce"].size == 4 * N
    assert exchanges(4, engine="accelerate") == exchanges(4, engine="ddp")
    ends = 2 * 2048 * 192 + 192  # outside of the layers, gathered once a pass: embedding, head, last norm
    one, two = (exchanges(4, engine="fsdp", micro_batch=size) for size in (4, 2))
    assert one["all_gather"].size == 4 * (2 * N - ends)
    assert two["all_gather"].size == 2 * one["all_gather"].size
    assert one["reduce_scatter"] == Exchange("reduce_scatter", 4, 4 * N, 5)
    assert two["reduce_scatter"] == Exchange("reduce_scatter", 4, 8 * N, 10)  # every pass reduces
    half = exchanges(4, engine="fsdp", precision="bf16", micro_batch=4)
    assert half["all_gather"].size == one["all_gather"].size // 2
    assert half["reduce_scatter"].size == 4 * N  # gradients are reduced in float32
    copies = exchanges(4, engine="fsdp", shard_ranks=2)
    assert (copies["all_gather"].ranks, copies["all_reduce"].ranks) == (2, 2)
    assert copies["all_reduce"].size == pytest.approx(2 * 4 * N / 2, rel=0.01)  # half of the model in each of 2 passes
    stages = [exchanges(4, engine=f"zero{stage}", precision="bf16")["reduce_scatter"].size for stage in (1, 2, 3)]
    assert stages == [2 * N, 4 * N, 4 * N]


def test_what_was_not_measured_is_said() -> None:
    ddp = load(4, engine="ddp")
    assert (
        predict_step(ddp, StepCeilings(None, 1e9, {}))
        == "no GEMM rate in this precision was measured with as many ranks loaded"
    )
    assert "no copy rate" in str(predict_step(ddp, StepCeilings(1e12, None, {})))
    said = predict_step(ddp, StepCeilings(1e12, 1e9, {("all_reduce", 2): Line(0, 1e9)}))
    assert isinstance(said, str)
    assert said.startswith("no all_reduce among 4 ranks was measured")
    assert "the computation alone would take " in said


def figure(metric: str, unit: str, value: float, **tags: Any) -> Figure:
    return Figure(metric, unit, Estimate(value, None, None, 9, "measured"), tags)


def trained(world: int, device: str = "cuda", **values: Any) -> CaseResult:
    chosen = options(**values)
    flops = float(flops_per_token(MODELS["llama-tiny"], N, 64))
    figures = [
        figure("flops_per_token", "FLOP", flops),
        figure("peak_memory", "B", 1e9),
        figure("step_time_p50", "s", 0.02),
    ]
    dumped = chosen.model_dump(mode="json", exclude={"out"})
    return CaseResult("t", "workloads/pretrain", world, dumped, None, 1, figures, about={"device": device})


def limits(world: int, device: str = "cuda") -> list[Figure]:
    tags = {"loaded": "together" if world > 1 else "alone", "ranks": world, "device": device}
    gemm = figure("gemm_rate", "FLOP/s", 1e12, **tags, dtype="float32")
    return [gemm, figure("copy_rate", "B/s", 1e11, **tags)]


def sweep(op: str, world: int, alpha: float, bandwidth: float) -> CaseResult:
    sizes = [1024 * 4**step for step in range(9)]
    factor = COLLECTIVES[op].bus(world)
    tags = {"op": op, "world": world}
    figures = [figure("batch_call_time", "s", alpha + size * factor / bandwidth, **tags, bytes=size) for size in sizes]
    return CaseResult("c", "comms/bench", world, {}, None, 1, figures)


def predicted(case: CaseResult, *others: CaseResult, ceilings: list[Figure]) -> dict[str, Figure]:
    last = with_predictions([*others, case], ceilings)[-1]
    return {one.metric: one for one in last.figures}


def test_a_run_predicts_from_its_own_ceilings_and_collectives() -> None:
    case, other = trained(4, engine="ddp"), sweep("all_reduce", 4, 1e-4, 1e9)
    found = predicted(case, other, ceilings=limits(4))
    assert found[MEMORY].value == estimate_memory(options(engine="ddp"), 4).peak
    expected = predict_step(load(4, engine="ddp"), StepCeilings(1e12, 1e11, {("all_reduce", 4): Line(1e-4, 1e9)}))
    assert isinstance(expected, StepPrediction)
    estimate = found[STEP].estimate
    assert estimate
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-3)
    for metric in (MEMORY, STEP):
        told = found[metric].estimate
        assert told
        assert told.samples == 0
        assert "not measured" in told.method


def test_what_a_run_lacks_for_a_prediction_is_its_reason() -> None:
    case = trained(4, engine="ddp")
    assert "no GEMM rate" in str(predicted(case, ceilings=limits(4, "cpu"))[STEP].reason)
    assert "no all_reduce among 4 ranks" in str(predicted(case, ceilings=limits(4))[STEP].reason)
    strange = replace(case, options={**case.options, "model": "nobody's"})
    found = predicted(strange, ceilings=limits(4))
    assert found[MEMORY].estimate is None
    assert "does not know" in str(found[MEMORY].reason)
    assert with_predictions([sweep("all_reduce", 4, 1e-4, 1e9)], [])[0].figures[0].metric == "batch_call_time"


def test_the_table_holds_them_against_each_other() -> None:
    case = with_predictions([trained(1, "cpu", engine="none")], limits(1, "cpu"))[0]
    part = prediction_part([case])
    assert part
    memory, step = part.tables[0].rows
    assert [cell.text for cell in memory[:3]] == ["t", "52.5 MB", "1.00 GB"]
    assert "resident set" in part.lead
    assert (memory[3].text, memory[3].note) == ("–", "not comparable: resident set of the process")
    assert step[3].text.endswith(" %")
    card = prediction_part(with_predictions([trained(1, engine="none")], limits(1)))
    assert card
    assert card.tables[0].rows[0][3].text.endswith(" %")
    assert "predicted, not measured" in step[4].text
    assert step[1].note.startswith("[")
    assert prediction_part([sweep("all_reduce", 4, 1e-4, 1e9)]) is None
