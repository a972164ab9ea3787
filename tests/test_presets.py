"""The shapes of published models are those of the published models, and the documents say so."""

import re
from typing import Any

import pytest

from assay.presets import ENCODERS, MODELS, EncoderShape, ModelShape, parameters_of
from assay.training.encoder import build_encoder
from assay.training.flops import adapted_flops_per_token, encoder_flops_per_token, flops_per_token
from assay.training.model import build_model, count_parameters
from tests.conftest import ROOT

SHAPES: dict[str, ModelShape | EncoderShape] = {**MODELS, **ENCODERS}
PAGE = (ROOT / "docs/models.md").read_text()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-7b", 6_738_415_616),  # 6.7B, 13.0B, 32.5B and 65.2B in the paper's table 2
        ("llama-13b", 13_015_864_320),
        ("llama-30b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("llama2-70b", 68_976_648_192),
        # "7B" of 103,168 tokens: two embeddings; per layer four projections with biases, three matrices and two norms.
        ("internlm-7b", 2 * 103_168 * 4096 + 32 * (4 * (4096**2 + 4096) + 3 * 4096 * 11_008 + 2 * 4096) + 4096),
        ("internlm-20b", 2 * 103_168 * 5120 + 60 * (4 * 5120**2 + 3 * 5120 * 13_824 + 2 * 5120) + 5120),
        ("bert-base", 110_106_428),  # BertForPreTraining of bert-base-uncased
        ("bert-large", 336_226_108),
    ],
)
def test_published_models_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    assert parameters_of(SHAPES[name]) == parameters


@pytest.mark.parametrize(("name", "billions"), [("gpt3-13b", 13.0), ("gpt3-175b", 175.0), ("internlm-20b", 20.0)])
def test_what_is_known_to_three_digits_agrees_with_them(name: str, billions: float) -> None:
    assert parameters_of(MODELS[name]) / 1e9 == pytest.approx(billions, rel=0.015)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_counting_without_a_model_counts_the_model(shape: ModelShape | EncoderShape) -> None:
    model = build_encoder(shape) if isinstance(shape, EncoderShape) else build_model(shape, 128)
    assert parameters_of(shape) == count_parameters(model)


@pytest.mark.parametrize(
    "shape",
    [
        ModelShape("tied", "llama", 320, 48, 2, 6, 6, 128, tied=True),
        ModelShape("grouped, biased", "internlm", 320, 48, 2, 6, 2, 128),
        ModelShape("untied", "gpt", 320, 48, 2, 6, 6, 192, positions=64),
    ],
    ids=lambda shape: shape.name,
)
@pytest.mark.parametrize("seq_len", [16, 100])
def test_a_table_of_positions_grows_where_sequences_are_longer(shape: ModelShape, seq_len: int) -> None:
    assert parameters_of(shape, seq_len) == count_parameters(build_model(shape, seq_len))


def test_published_models_name_their_source_and_others_are_our_own() -> None:
    for name, shape in SHAPES.items():
        assert shape.name == name
        assert shape.source.startswith("own") == (name.endswith("-tiny") or name == "llama-100m")


def test_every_way_to_build_a_model_has_a_tiny_twin() -> None:
    def build(shape: ModelShape) -> tuple[str, bool, bool]:
        return shape.family, shape.kv_heads < shape.heads, shape.tied

    tiny = [shape for name, shape in MODELS.items() if name.endswith("-tiny")]
    assert {build(shape) for shape in tiny} == {build(shape) for shape in MODELS.values()}
    assert all(parameters_of(shape) < 4e6 for shape in tiny)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"heads": 5}, "hidden size 48 is not divisible by 5 heads"),
        ({"kv_heads": 4}, "6 heads cannot share 4 key-value heads equally"),
        ({"kv_heads": 0}, "kv_heads is 0, expected at least 1"),
        ({"layers": -1}, "layers is -1, expected at least 1"),
        ({"family": "bert"}, "family 'bert' is not one of llama, internlm, gpt"),
        ({"family": "gpt", "kv_heads": 2}, "a GPT has as many key-value heads as heads, not 2"),
        ({"heads": 16, "kv_heads": 16}, "rotary positions need an even head dimension, not 3"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(changed: dict[str, Any], told: str) -> None:
    good = {"family": "llama", "vocab": 320, "hidden": 48, "layers": 2, "heads": 6, "kv_heads": 6, "intermediate": 128}
    with pytest.raises(ValueError, match=f"^mine: {told}$"):
        ModelShape("mine", **{**good, **changed})


def test_an_encoder_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^mine: hidden size 48 is not divisible by 5 heads$"):
        EncoderShape("mine", 320, 48, 2, 5, 192)


def test_the_documented_shapes_are_the_presets() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:3] == "| `"]
    documented = {cells[0].strip("`"): cells[1:] for cells in rows}
    assert documented == {name: _documented(shape) for name, shape in SHAPES.items()}


def _documented(shape: ModelShape | EncoderShape) -> list[str]:
    built, groups = ("bert", shape.heads) if isinstance(shape, EncoderShape) else (shape.family, shape.kv_heads)
    sizes = [shape.layers, shape.hidden, shape.heads, groups, shape.intermediate, shape.vocab, shape.positions]
    return [built, *(f"{size:,}" for size in (*sizes, parameters_of(shape))), shape.source]


def test_the_worked_examples_are_what_the_formulas_give() -> None:
    told = [int(number.replace(",", "")) for number in re.findall(r"= ([\d,]+) FLOP a token$", PAGE, re.MULTILINE)]
    seven, base = MODELS["llama-7b"], ENCODERS["bert-base"]
    frozen, adapter = parameters_of(seven), 2 * 32 * 8 * (4096 + 4096)
    assert told == [
        flops_per_token(seven, frozen, 2048),
        adapted_flops_per_token(seven, frozen, adapter, 512),
        encoder_flops_per_token(base, 512, 76.8),
    ]
