"""LoRA beside frozen layers: what is trained, how it starts, and that it is peft's own."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from assay.device import HostDevice
from assay.errors import BadInput
from assay.presets import ModelShape
from assay.training.adapters import add_adapters, count_adapted
from assay.training.int8 import to_int8
from assay.training.model import build_model, count_parameters, materialise
from assay.training.weights import initialise

SMALL = ModelShape("small", "llama", 256, 48, 2, 6, 2, 128)
GPT = ModelShape("gpt", "gpt", 256, 48, 2, 6, 6, 192)
PUBLIC = ("q_proj", "v_proj")


def adapted(shape: ModelShape = SMALL, targets: tuple[str, ...] = PUBLIC, rank: int = 8) -> nn.Module:
    model = build_model(shape, 32)
    add_adapters(model, rank, 16, 0.05, targets)
    return model


def test_only_adapters_are_trained_and_nothing_has_memory_yet() -> None:
    model = adapted()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        f"model.layers.{layer}.self_attn.{target}.lora_{half}.default.weight"
        for layer in range(2)
        for target in PUBLIC
        for half in "AB"
    }


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks so, transformers minds
@pytest.mark.parametrize(("shape", "targets"), [(SMALL, PUBLIC), (SMALL, ("down_proj",)), (GPT, ("c_attn", "c_fc"))])
def test_counts_are_those_of_peft(shape: ModelShape, targets: tuple[str, ...]) -> None:
    config = LoraConfig(r=4, target_modules=list(targets), fan_in_fan_out=shape.family == "gpt")
    theirs = get_peft_model(build_model(shape, 32), config)
    trained, everything = theirs.get_nb_trainable_parameters()
    assert count_adapted(adapted(shape, targets, rank=4)) == (everything - trained, trained)


def test_the_count_of_a_quantised_base_is_that_of_its_weights() -> None:
    plain, quantised = adapted(), adapted()
    to_int8(quantised)
    assert count_adapted(quantised) == count_adapted(plain)
    assert count_parameters(quantised) > count_parameters(plain), "the scales are parameters too"


def test_a_model_starts_as_if_it_had_no_adapters() -> None:
    with_adapters, without = adapted(), build_model(SMALL, 32)
    for model in (with_adapters, without):
        materialise(model, HostDevice())
        initialise(model, 5)
    rows = torch.arange(2 * 16).view(2, 16)
    with torch.no_grad():
        assert torch.equal(with_adapters(input_ids=rows).logits, without(input_ids=rows).logits)
    first = with_adapters.get_parameter("model.layers.0.self_attn.q_proj.lora_A.default.weight")
    assert float(first.detach().std()) == pytest.approx(1 / math.sqrt(3 * 48), rel=0.15)


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(BadInput, match="--lora-targets c_attn: the model has no layer of such a name"):
        adapted(SMALL, ("c_attn",))
