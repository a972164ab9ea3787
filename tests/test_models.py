"""Models are what their shapes say: parameters, memory with all that belongs in it, and FLOPs as torch counts them."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForPreTraining

from assay.device import HostDevice
from assay.errors import RunFailed
from assay.presets import ENCODERS, MODELS, EncoderShape, ModelShape
from assay.training.encoder import build_encoder
from assay.training.flops import adapted_flops_per_token, encoder_flops_per_token, flops_per_token
from assay.training.model import build_model, count_parameters, decoder_layers, materialise

# peft 0.21 asks transformers 5.23 for something under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

DECODERS = [
    ModelShape("untied", "llama", 320, 48, 3, 6, 6, 128),
    ModelShape("tied", "llama", 320, 48, 2, 6, 6, 128, tied=True),
    ModelShape("grouped", "llama", 320, 48, 2, 6, 2, 128),
    ModelShape("biased", "internlm", 320, 48, 2, 6, 6, 128),
    ModelShape("gpt", "gpt", 320, 48, 2, 6, 6, 192, tied=True, positions=64),
    ModelShape("gpt, untied", "gpt", 320, 48, 3, 6, 6, 192, positions=16),
]
ENCODER = EncoderShape("bert", 320, 48, 2, 6, 192, positions=64)
T = 32
BATCH = 2


def bert(shape: EncoderShape = ENCODER) -> nn.Module:
    return build_encoder(shape, attention="eager")


def arguments(model: nn.Module, predicted: int = T) -> dict[str, torch.Tensor]:
    """What the model is called with: BATCH sequences of T tokens."""
    tokens = torch.arange(BATCH * T).view(BATCH, T)
    if not isinstance(model, BertForPreTraining):
        return {"input_ids": tokens}
    places = torch.arange(predicted).expand(BATCH, predicted)
    return {"input_ids": tokens, "token_type_ids": tokens % 2, "places": places}


def logits(model: nn.Module, predicted: int = T) -> list[torch.Tensor]:
    out = model(**arguments(model, predicted))
    return list(out) if isinstance(model, BertForPreTraining) else [out.logits]


def with_adapters(model: nn.Module, targets: tuple[str, ...]) -> nn.Module:
    config = LoraConfig(r=4, target_modules=list(targets), fan_in_fan_out=model.config.model_type == "gpt2")  # type: ignore[union-attr]
    made: nn.Module = get_peft_model(model, config)
    return made


def adapted(shape: ModelShape, targets: tuple[str, ...]) -> nn.Module:
    return with_adapters(build_model(shape, T, attention="eager"), targets)


def with_memory(model: nn.Module) -> nn.Module:
    """The same model, made by its constructors where there is memory."""
    if isinstance(model, PeftModel):
        base = model.get_base_model()
        return with_adapters(type(base)(base.config), tuple(model.peft_config["default"].target_modules))
    return type(model)(model.config)


def twins(model: nn.Module) -> set[str]:
    """Names of parameters that are known under another name too."""
    return {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()


def fill(model: nn.Module) -> nn.Module:
    materialise(model, HostDevice())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model


MODELS_TO_MAKE: dict[str, Callable[[], nn.Module]] = {
    **{shape.name: partial(build_model, shape, T) for shape in DECODERS},
    "bert": bert,
    "LoRA": lambda: adapted(DECODERS[1], ("q_proj", "v_proj")),
    "LoRA, gpt": lambda: adapted(DECODERS[4], ("c_attn",)),
}


@pytest.mark.parametrize("name", MODELS_TO_MAKE)
def test_what_is_made_without_memory_computes_what_is_made_with_it(name: str) -> None:
    model = MODELS_TO_MAKE[name]()
    expected_twins = twins(model)
    filled, normal = fill(model), with_memory(model)
    assert twins(filled) == twins(normal) == expected_twins
    normal.load_state_dict(filled.state_dict())
    with torch.no_grad():
        for own, expected in zip(logits(filled.eval()), logits(normal.eval()), strict=True):
            assert torch.equal(own, expected)
            assert float(expected.abs().sum()) > 0


def test_a_buffer_that_nobody_fills_is_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].register_buffer("mask", torch.ones(3), persistent=False)
    with pytest.raises(RunFailed, match=r"value of the buffer 0\.mask"):
        materialise(model, HostDevice())


def test_a_buffer_of_the_state_dict_is_left_to_whoever_loads_it() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
        model.register_buffer("quantised", torch.ones(3, dtype=torch.int8))
    materialise(model, HostDevice())
    assert model.get_buffer("quantised").device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_frequencies_stay_float32(dtype: torch.dtype) -> None:
    model = build_model(DECODERS[0], T, dtype)
    materialise(model, HostDevice())
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", MODELS_TO_MAKE)
def test_layers_hold_all_but_embeddings_and_heads(name: str) -> None:
    model = MODELS_TO_MAKE[name]()
    layers = decoder_layers(model)
    assert len(layers) == model.config.num_hidden_layers  # type: ignore[union-attr]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = [name for name, parameter in model.named_parameters() if id(parameter) not in inside]
    assert not [name for name in outside if re.search(r"\.\d+\.", name)]


@pytest.mark.parametrize("seq_len", [8, 100])
def test_a_model_has_positions_for_its_sequences(seq_len: int) -> None:
    for shape in DECODERS:
        model = fill(build_model(shape, seq_len))
        with torch.no_grad():
            assert model(input_ids=torch.zeros(1, seq_len, dtype=torch.long)).logits.shape == (1, seq_len, 320)


def counted(model: nn.Module, predicted: int = T) -> float:
    """FLOP per token of forward and backward, by torch's counter."""
    # Eager attention: the counter knows no formula for the CPU's fused attention and would leave it out.
    with FlopCounterMode(display=False) as counter:
        torch.stack([out.sum() for out in logits(model, predicted)]).sum().backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
    return float(counter.get_total_flops()) / (BATCH * T)


@pytest.mark.parametrize("shape", DECODERS, ids=lambda shape: shape.name)
def test_flops_of_a_decoder_are_those_that_torch_counts(shape: ModelShape) -> None:
    model = fill(build_model(shape, T, attention="eager"))
    assert flops_per_token(shape, count_parameters(model), T) == counted(model)


@pytest.mark.parametrize("predicted", [1, 5, T])
def test_flops_of_an_encoder_are_those_that_torch_counts(predicted: int) -> None:
    model = fill(bert())
    assert encoder_flops_per_token(ENCODER, T, predicted) == pytest.approx(counted(model, predicted), rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "targets"),
    [
        (DECODERS[0], ("q_proj", "v_proj")),
        (DECODERS[1], ("v_proj",)),
        (DECODERS[2], ("k_proj", "down_proj")),
        (DECODERS[2], ("o_proj",)),
        (DECODERS[3], ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        (DECODERS[0], ("gate_proj", "up_proj")),
        (DECODERS[0], ("down_proj",)),
        (DECODERS[4], ("c_attn",)),
        (DECODERS[5], ("c_proj",)),
        (DECODERS[5], ("c_fc",)),
    ],
    ids=lambda value: value.name if isinstance(value, ModelShape) else "+".join(value),
)
def test_flops_of_an_adapted_model_are_those_that_torch_counts(shape: ModelShape, targets: tuple[str, ...]) -> None:
    model = fill(adapted(shape, targets))
    adapter = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = count_parameters(model) - adapter
    assert adapted_flops_per_token(shape, frozen, adapter, T, targets) == counted(model)


def test_an_adapter_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="llama-tiny has none of the matrices c_attn"):
        adapted_flops_per_token(MODELS["llama-tiny"], 1000, 10, T, ("c_attn",))


@pytest.mark.parametrize("name", [name for name in (*MODELS, *ENCODERS) if name.endswith("-tiny")])
def test_every_tiny_twin_trains(name: str) -> None:
    model = fill(bert(ENCODERS[name]) if name in ENCODERS else build_model(MODELS[name], T))
    torch.stack([out.square().mean() for out in logits(model)]).sum().backward()  # type: ignore[no-untyped-call] # as above
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []
