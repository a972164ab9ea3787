"""The step: schedule, accumulation, evaluation, and engines that refuse to pass for another."""

import math
from math import log
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.device import HostDevice
from assay.errors import RunFailed
from assay.options import PretrainOptions
from assay.options.base import validate
from assay.presets import MODELS
from assay.ranks import Session
from assay.record import Header
from assay.recorder import Recorder
from assay.training.causal import CausalTask
from assay.training.data import DummyData
from assay.training.engines import ENGINES, Setting
from assay.training.journal import MOST_SKIPPED, Journal
from assay.training.loop import Job, Step, evaluate, prove_engine, train_step
from assay.training.optimizer import clip_gradients, learning_rate
from assay.world import World

VOCAB = MODELS["llama-tiny"].vocab
ALONE = World(0, 1, 0, 1, "gloo", ("host",), True)
PAIR = World(0, 2, 0, 2, "gloo", ("host", "host"), True)


def options(**given: object) -> PretrainOptions:
    return validate(PretrainOptions, {"data": "dummy", "seq_len": 16, "lr_warmup_steps": 0, **given})


def make_job(chosen: PretrainOptions, held_out: int = 1 << 20) -> Job:
    data = DummyData(chosen.seed, VOCAB, chosen.seq_len, held_out)
    task = CausalTask(chosen, data)
    engine = ENGINES["none"](Setting(chosen, task, ALONE, HostDevice()))
    return Job(chosen, engine, task, ALONE, HostDevice())


def losses(job: Job, steps: int = 3) -> list[float]:
    return [float(train_step(job, step).loss) for step in range(steps)]


def mean_held_out_loss(job: Job, count: int) -> float:
    with torch.no_grad():
        sums, sizes = job.task.scores(job.engine.module, job.task.held_out_batch(range(count)))["eval_loss"]
    return float(sums.sum() / sizes.sum())


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 49),
    ramp=st.integers(0, 60),
    ratio=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear"]),
)
def test_learning_rate_rises_to_its_peak_and_falls_to_its_floor(
    steps: int, warmup: int, ramp: int, ratio: float, schedule: str
) -> None:
    chosen = options(
        steps=steps, warmup_steps=warmup, lr=0.5, lr_warmup_steps=ramp, min_lr_ratio=ratio, schedule=schedule
    )
    rates = [learning_rate(step, chosen) for step in range(steps + warmup)]
    assert all(0 <= rate <= 0.5 for rate in rates)
    assert rates[:ramp] == sorted(rates[:ramp])
    assert rates[ramp:] == sorted(rates[ramp:], reverse=True)
    if len(rates) > ramp:
        assert rates[ramp] == pytest.approx(0.5)
    if len(rates) > ramp + 1:
        assert rates[-1] == pytest.approx(0.5 * ratio)


def test_accumulation_does_not_change_the_step() -> None:
    jobs = [make_job(options(global_batch=8, micro_batch=micro)) for micro in (8, 2, 1)]
    for step in range(4):
        whole, *parts = [[float(value) for value in train_step(job, step)] for job in jobs]
        assert whole[2] == 8 * 16, "tokens of the global batch"
        for part in parts:
            assert part == pytest.approx(whole, rel=1e-5)


def test_the_loss_is_the_mean_over_the_global_batch() -> None:
    job = make_job(options(global_batch=6, micro_batch=2))
    logits = job.engine.module(input_ids=job.task.batch(range(6, 12))["rows"][:, :-1]).logits
    targets = job.task.batch(range(6, 12))["rows"][:, 1:]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert float(train_step(job, 1).loss) == pytest.approx(expected.item(), rel=1e-6)


def test_only_matrices_are_decayed() -> None:
    # With a gradient of nothing and no learning but decay, AdamW shrinks what it decays.
    job = make_job(options(lr=0.1, weight_decay=0.5, clip=1e-30))
    before = {name: value.detach().clone() for name, value in job.engine.module.named_parameters()}
    train_step(job, 0)
    for name, value in job.engine.module.named_parameters():
        change = (value.detach() - before[name]).abs().max()
        assert (float(change) > 1e-4) == (value.dim() > 1), name


@pytest.mark.parametrize("given", [{"precision": "bf16"}, {"precision": "fp16"}, {"checkpointing": True}], ids=str)
def test_other_precisions_and_recomputation_train_the_same_model(given: dict[str, object]) -> None:
    plain, other = make_job(options(lr=1e-2)), make_job(options(lr=1e-2, **given))
    kept: list[torch.dtype] = []
    layer = other.task.layers(other.engine.module)[0].get_submodule("self_attn.q_proj")
    layer.register_forward_hook(lambda _, args, out: kept.append(out.dtype))
    mixed = "precision" in given
    assert losses(other, 6) == pytest.approx(losses(plain, 6), rel=1e-3 if mixed else 1e-6)
    assert {parameter.dtype for parameter in other.engine.module.parameters()} == {torch.float32}
    assert set(kept) == {
        {"bf16": torch.bfloat16, "fp16": torch.float16}.get(str(given.get("precision")), torch.float32)
    }
    # Recomputation shows: a layer's forward runs a second time in each backward.
    assert len(kept) == 6 * 2 * (1 if mixed else 2)


def test_gradients_are_clipped_to_the_norm_asked_for() -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    parameter.grad = torch.full((3, 4), 5.0)
    norm = clip_gradients([parameter], 1.0)
    assert float(norm) == pytest.approx(5 * 12**0.5)
    assert float(parameter.grad.norm()) == pytest.approx(1.0, rel=1e-5)
    clip_gradients([parameter], 10.0)
    assert float(parameter.grad.norm()) == pytest.approx(1.0, rel=1e-5), "a small gradient must stay as it is"


def test_proving_the_engine_leaves_no_trace() -> None:
    fresh, proved = make_job(options()), make_job(options())
    assert prove_engine(proved) == "one rank, model not wrapped"
    assert losses(fresh) == losses(proved)


def test_evaluation_is_the_mean_over_held_out_sequences() -> None:
    job = make_job(options(global_batch=4, micro_batch=4, eval_batches=2))
    expected = mean_held_out_loss(job, 8)
    assert evaluate(job) == {"eval_loss": pytest.approx(expected, rel=1e-6)}
    assert expected == pytest.approx(log(VOCAB), rel=0.02), "an untrained model knows nothing"
    assert evaluate(make_job(options(eval_batches=0))) == {}


def test_evaluation_counts_no_sequence_twice() -> None:
    job = make_job(options(global_batch=4, micro_batch=4, eval_batches=2), held_out=5)
    assert evaluate(job) == {"eval_loss": pytest.approx(mean_held_out_loss(job, 5), rel=1e-6)}


def test_a_bare_model_on_two_ranks_passes_for_no_engine() -> None:
    job = make_job(options())
    setting = Setting(options(), job.task, PAIR, HostDevice())
    with pytest.raises(RunFailed, match="engine none did not engage: the world has 2 ranks"):
        ENGINES["none"](setting).assert_engaged()


def test_steps_that_change_nothing_are_counted_and_then_end_the_run() -> None:
    here = Session(ALONE, HostDevice(), Recorder(None, cast(Header, None)))
    nothing = Step(torch.tensor(1.0), torch.tensor(math.inf), 8, torch.tensor(1.0))
    journal = Journal(here, options(precision="fp16", warmup_steps=0), {})
    for step in range(MOST_SKIPPED - 1):
        journal.add(step, 1.0, nothing)
    assert journal.skipped == MOST_SKIPPED - 1
    with pytest.raises(RunFailed, match=r"gradient norm is inf at step 19"):
        journal.add(MOST_SKIPPED - 1, 1.0, nothing)
    with pytest.raises(RunFailed, match=r"gradient norm is inf at step 0 of 100; training diverged"):
        Journal(here, options(warmup_steps=0), {}).add(0, 1.0, nothing)


def test_an_overflow_of_fp16_changes_no_weight() -> None:
    job = make_job(options(precision="fp16"))
    before = [one.detach().clone() for one in job.engine.module.parameters()]
    loss = job.task.loss_sums(job.engine.module, job.task.batch(range(2)))["loss"]
    job.engine.backward(loss * 1e30)  # finite in float32, and no gradient of a product in float16
    assert not math.isfinite(float(job.engine.update(1e-3)))
    unchanged = [torch.equal(a, b) for a, b in zip(before, job.engine.module.parameters(), strict=True)]
    assert all(unchanged)
    assert math.isfinite(float(train_step(job, 0).norm))
    assert not torch.equal(before[0], next(job.engine.module.parameters()))
