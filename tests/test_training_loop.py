"""The step: FLOPs, schedule, accumulation, evaluation, and engines that refuse to pass for another."""

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from assay.device import HostDevice
from assay.errors import RunFailed
from assay.options import PretrainOptions
from assay.options.base import validate
from assay.presets import ModelShape
from assay.training.data import DummyData
from assay.training.engines import ENGINES, clip_gradients
from assay.training.flops import flops_per_token
from assay.training.loop import (
    Job,
    evaluate,
    learning_rate,
    make_optimizer,
    next_token_losses,
    prove_engine,
    train_step,
)
from assay.training.model import build_model, count_parameters
from assay.training.weights import initialise
from assay.world import World

SMALL = ModelShape("small", "llama", 256, 48, 2, 6, 2, 128)
ALONE = World(0, 1, 0, 1, "gloo", ("host",), True)


def options(**given: object) -> PretrainOptions:
    return validate(PretrainOptions, {"data": "dummy", "seq_len": 16, **given})


def make_job(chosen: PretrainOptions, shape: ModelShape = SMALL, attention: str = "sdpa") -> Job:
    model = build_model(shape, chosen.seq_len, torch.float32, attention)
    module = ENGINES["none"].spread(model, lambda made: initialise(made, chosen.seed), ALONE, HostDevice())
    data = DummyData(chosen.seed, shape.vocab, chosen.seq_len)
    return Job(chosen, module, ENGINES["none"], make_optimizer(module, chosen), data, ALONE, HostDevice())


@pytest.mark.parametrize(
    "shape",
    [
        ModelShape("untied", "llama", 1024, 96, 3, 6, 6, 256),
        ModelShape("tied", "llama", 1024, 96, 3, 6, 6, 256, tied=True),
        ModelShape("grouped", "llama", 1024, 96, 3, 6, 2, 256),
        ModelShape("biased", "internlm", 1024, 96, 3, 6, 6, 256),
    ],
    ids=lambda shape: shape.name,
)
def test_flops_agree_with_torchs_own_counter(shape: ModelShape) -> None:
    # Eager attention: the counter knows no formula for the CPU's fused attention and would leave it out.
    job = make_job(options(seq_len=64), shape, attention="eager")
    rows = torch.arange(2 * 65).view(2, 65)
    with FlopCounterMode(display=False) as counter:
        next_token_losses(job.module, rows).mean().backward()  # type: ignore[no-untyped-call] # untyped in torch
    counted = counter.get_total_flops() / (2 * 64)
    assert flops_per_token(shape, count_parameters(job.module), 64) == pytest.approx(counted, rel=0.005)


@given(
    steps=st.integers(1, 300),
    warmup=st.integers(0, 49),
    ramp=st.integers(0, 60),
    ratio=st.floats(0, 1),
)
def test_learning_rate_rises_to_its_peak_and_falls_to_its_floor(
    steps: int, warmup: int, ramp: int, ratio: float
) -> None:
    chosen = options(steps=steps, warmup_steps=warmup, lr=0.5, lr_warmup_steps=ramp, min_lr_ratio=ratio)
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
        for part in parts:
            assert part == pytest.approx(whole, rel=1e-5)


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
    assert [float(x) for x in train_step(fresh, 0)] == [float(x) for x in train_step(proved, 0)]


def test_evaluation_is_the_mean_over_held_out_sequences() -> None:
    job = make_job(options(global_batch=4, micro_batch=4, eval_batches=2))
    rows = torch.stack([torch.from_numpy(job.data.held_out_row(index)) for index in range(8)])
    with torch.no_grad():
        expected = float(next_token_losses(job.module, rows).mean())
    assert evaluate(job) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(log(SMALL.vocab), rel=0.02), "an untrained model knows nothing"
    assert evaluate(make_job(options(eval_batches=0))) is None


def test_evaluation_counts_no_sequence_twice() -> None:
    job = make_job(options(global_batch=4, micro_batch=4, eval_batches=2))
    few = DummyData(1, SMALL.vocab, 16, held_out=5)
    job = Job(job.options, job.module, job.engine, job.optimizer, few, job.world, job.device)
    rows = torch.stack([torch.from_numpy(few.held_out_row(index)) for index in range(5)])
    with torch.no_grad():
        expected = float(next_token_losses(job.module, rows).mean())
    assert evaluate(job) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("engine", ["none", "ddp", "fsdp"])
def test_a_bare_model_on_two_ranks_passes_for_no_engine(engine: str) -> None:
    job = make_job(options())
    pair = World(0, 2, 0, 2, "gloo", ("host", "host"), True)
    with pytest.raises(RunFailed, match=f"engine {engine} did not engage"):
        ENGINES[engine].assert_engaged(job.module, pair)
