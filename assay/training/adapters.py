"""LoRA: narrow matrices beside frozen layers, by peft."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from assay.errors import BadInput


def add_adapters(model: nn.Module, rank: int, alpha: int, dropout: float, targets: Sequence[str]) -> None:
    """Put adapters beside the layers of these names, on meta, and freeze everything else. In place.

    A layer's output gains alpha / rank · B(A(x)), A [rank, in], B [out, rank] (Hu et al. 2021); `dropout` of x. They are
    put into the model itself, without peft's outer wrapper, so that names and layers stay where engines look for them.
    Raises BadInput without peft, or where no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise BadInput("--method lora needs peft; install it with: pip install 'assay[finetune]'") from None
    found = [layer for name, layer in model.named_modules() if name.rpartition(".")[2] in targets]
    if not found:
        raise BadInput(f"--lora-targets {','.join(targets)}: the model has no layer of such a name")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        fan_in_fan_out=isinstance(found[0], Conv1D),  # GPT-2's layers keep their weight as [in, out]
    )
    with torch.device("meta"):
        inject_adapter_in_model(config, model)


def count_adapted(model: nn.Module) -> tuple[int, int]:
    """Elements of what is frozen, and of what is trained. Scales of int8 weights, which multiply nothing, count as none."""
    frozen = trained = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained += parameter.numel()
        elif not name.endswith("scale_bits"):
            frozen += parameter.numel()
    return frozen, trained
