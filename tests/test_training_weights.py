"""Initial weights: the same numbers however they are cut, named or placed."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from assay.device import HostDevice
from assay.errors import RunFailed
from assay.presets import ModelShape
from assay.training.model import build_model, materialise
from assay.training.weights import (
    CHUNK,
    PIECE,
    canonical_name,
    draw,
    initialise,
    initialise_adapters,
    is_adapter,
    raw_bits,
    row_range,
)

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
    rows = torch.arange(32).view(2, 16)
    with torch.no_grad():
        assert torch.equal(model(input_ids=rows).logits, ordinary(input_ids=rows).logits)


def test_numbers_are_sums_of_four_halves_of_the_raw_bits() -> None:
    # By the definition, number by number, across pieces and from the middle of a block of the generator.
    start, count = 2**33 + 3, PIECE + 7
    values = draw(9, "some.weight", start, count)
    scale = np.float32(0.02 / np.sqrt(4 * (2**32 - 1) / 12))
    bits = [int(one) for one in raw_bits(9, "some.weight", start, count)]
    sums = [sum(one >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 131070 for one in bits]
    assert values.tobytes() == (np.array(sums, dtype=np.float32) * scale).tobytes()


def test_the_number_of_threads_changes_nothing() -> None:
    made = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            model = torch.nn.Sequential(torch.nn.Embedding(CHUNK // 256 + 1, 512), torch.nn.Linear(64, 3))
            initialise(model, 5)
            made.append([parameter.detach().numpy().tobytes() for parameter in model.parameters()])
    finally:
        torch.set_num_threads(threads)
    assert made[0] == made[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrower_types_hold_the_same_numbers_rounded(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(70, 30, dtype=dtype)
    initialise(layer, 5)
    assert torch.equal(layer.weight.view(-1), torch.from_numpy(draw(5, "weight", 0, 2100)).to(dtype))


def gpt() -> nn.Module:
    made: nn.Module = GPT2LMHeadModel(GPT2Config(**SIZES, n_positions=16, bos_token_id=None, eos_token_id=None))
    return made


def bert() -> nn.Module:
    made: nn.Module = BertForPreTraining(BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=16))
    return made


SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(("make", "norms"), [(gpt, ("ln_1", "ln_2", "ln_f")), (bert, ("LayerNorm",))])
def test_other_families_start_alike(make: Callable[[], nn.Module], norms: tuple[str, ...]) -> None:
    model = make()
    initialise(model, 3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.split(".")[-2] in norms:
            assert bool((parameter == 1).all()), name
        else:
            assert parameter.detach().numpy().tobytes() == draw(3, name, 0, parameter.numel()).tobytes(), name


def adapted() -> nn.Module:
    model = build_model(SMALL, 16, torch.float32)
    materialise(model, HostDevice())
    initialise(model, 3)
    made: nn.Module = inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj"]), model)
    return made


def test_adapters_change_nothing_at_first_and_are_as_wide_as_peft_makes_them() -> None:
    # peft draws A from the uniform distribution over ±1/√in, whose standard deviation is 1/√(3·in).
    model = adapted()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    initialise_adapters(model, 3)
    after = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in after.items():
        if ".lora_A." in name:
            drawn = draw(3, canonical_name(name), 0, parameter.numel(), 1 / math.sqrt(3 * SMALL.hidden))
            assert parameter.numpy().tobytes() == drawn.tobytes()
            assert float(parameter.std()) == pytest.approx(float(before[name].std()), rel=0.2)
        elif ".lora_B." in name:
            assert not parameter.any()
        else:
            assert torch.equal(parameter, before[name])
    assert sum(map(is_adapter, after)) == 2 * SMALL.layers


def test_all_weights_of_an_adapted_model_are_those_of_the_bare_one() -> None:
    model = adapted()
    bare = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if not is_adapter(name)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    initialise(model, 3)
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in bare.items())


def test_a_quantised_base_and_buffers_stay_as_they_are() -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    model.weight = nn.Parameter(torch.full((4, 4), 5, dtype=torch.int8), requires_grad=False)
    model.register_buffer("scale", torch.full((4,), 0.5))
    initialise(model, 1)
    assert bool((model.weight == 5).all())
    assert bool((model.get_buffer("scale") == 0.5).all())


def test_a_layer_of_unknown_kind_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Bilinear(2, 2, 2))
    with pytest.raises(RunFailed, match=r"1\.weight belongs to a Bilinear"):
        initialise(model, 1)
