"""Initial weights: the same numbers however they are cut, named or placed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from assay.device import HostDevice
from assay.presets import ModelShape
from assay.training.loop import next_token_losses
from assay.training.model import build_model, materialise
from assay.training.weights import CHUNK, canonical_name, draw, initialise, row_range

SMALL = ModelShape("small", "internlm", 256, 48, 2, 6, 2, 128)


@given(
    seed=st.integers(0, 2**64 - 1),
    name=st.text(min_size=1, max_size=20),
    start=st.integers(0, 2**40),
    cuts=st.lists(st.integers(0, 200), min_size=1, max_size=5),
)
def test_any_split_gives_the_same_numbers(seed: int, name: str, start: int, cuts: Sequence[int]) -> None:
    whole = draw(seed, name, start, sum(cuts))
    parts = [draw(seed, name, start + sum(cuts[:i]), count) for i, count in enumerate(cuts)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_the_numbers_are_these_on_every_machine() -> None:
    # Pinned: a change here means that no earlier loss curve can be reproduced any more.
    values = draw(1, "model.embed_tokens.weight", 0, 3).astype(float)
    assert [float(value).hex() for value in values] == [
        "0x1.0cacfc0000000p-10",
        "-0x1.0adc840000000p-5",
        "0x1.2230140000000p-7",
    ]


def test_numbers_have_the_mean_and_spread_asked_for() -> None:
    values = draw(1, "x", 0, 1 << 18, std=0.02).astype(np.float64)
    assert abs(values.mean()) < 0.02 * 4 / 512
    assert values.std() == pytest.approx(0.02, rel=0.01)
    assert np.abs(values).max() < 0.02 * 3.47


def test_seeds_and_names_give_unrelated_numbers() -> None:
    base, other_seed, other_name = (draw(s, n, 0, 1 << 16) for s, n in ((1, "a"), (2, "a"), (1, "b")))
    for other in (other_seed, other_name):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.02


@given(rows=st.integers(0, 300), ranks=st.integers(1, 40))
def test_rows_are_dealt_like_torch_chunk(rows: int, ranks: int) -> None:
    dealt = [row_range(rows, ranks, rank) for rank in range(ranks)]
    chunks = [part for part in torch.arange(rows).chunk(ranks) if len(part)]
    assert [(int(part[0]), int(part[-1]) + 1) for part in chunks] == [(a, b) for a, b in dealt if b > a]


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.model.layers.0.self_attn.q_proj.weight",
        "_orig_mod.model.layers.0.self_attn.q_proj.weight",
        "module._orig_mod.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "module.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_wrappers_do_not_change_a_name(wrapped: str) -> None:
    assert canonical_name(wrapped) == "model.layers.0.self_attn.q_proj.weight"


def test_norms_are_one_biases_zero_matrices_drawn() -> None:
    model = build_model(SMALL, 16, torch.float32)
    materialise(model, HostDevice())
    initialise(model, 3)
    parameters = dict(model.named_parameters())
    for layer in range(SMALL.layers):
        for part in "qkvo":
            assert not parameters[f"model.layers.{layer}.self_attn.{part}_proj.bias"].any()
    norms = [name for name in parameters if "norm" in name]
    assert len(norms) == 2 * SMALL.layers + 1
    assert all(bool((parameters[name] == 1).all()) for name in norms)
    head = parameters["lm_head.weight"]
    assert head.detach().numpy().tobytes() == draw(3, "lm_head.weight", 0, head.numel()).tobytes()


def test_a_parameter_larger_than_a_chunk_is_one_stream() -> None:
    model = torch.nn.Linear(CHUNK // 1024 + 3, 1024, bias=False)
    initialise(model, 5)
    assert model.weight.detach().numpy().tobytes() == draw(5, "weight", 0, model.weight.numel()).tobytes()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_made_on_meta_computes_what_an_ordinary_one_does(tied: bool) -> None:
    shape = ModelShape("small", "llama", 256, 48, 2, 6, 2, 128, tied=tied)
    model = build_model(shape, 16, torch.float32)
    materialise(model, HostDevice())
    initialise(model, 3)
    assert isinstance(model, LlamaForCausalLM)
    ordinary = LlamaForCausalLM(model.config)
    ordinary.load_state_dict(model.state_dict())
    rows = torch.arange(34).view(2, 17)
    with torch.no_grad():
        assert torch.equal(next_token_losses(model, rows), next_token_losses(ordinary, rows))
