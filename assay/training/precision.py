"""Precisions: float32 to the letter, TF32 products, and mixed precision with float32 weights."""

import functools
from typing import Any

import torch
from torch import nn

from assay.device import Device
from assay.errors import BadInput
from assay.options import TrainingOptions

COMPUTE: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precision → element type of activations."""


def set_matmul_precision(options: TrainingOptions, device: Device) -> None:
    """Make float32 products what the precision says, whatever an environment variable would have had.

    Raises BadInput for tf32 on a CPU, which has no such products,.
    """
    if options.precision == "tf32" and device.type == "cpu":
        raise BadInput("--precision tf32: a CPU has no TF32 products; use fp32 here, or --device with an accelerator")
    # TORCH_ALLOW_TF32_CUBLAS_OVERRIDE in a container's environment turns float32 into TF32 otherwise.
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")


def is_mixed(options: TrainingOptions) -> bool:
    """Whether activations are of another type than weights."""
    return COMPUTE[options.precision] is not torch.float32


def run_mixed(model: nn.Module, options: TrainingOptions, device: Device) -> None:
    """From now on the model's forward runs under autocast, where the precision is a mixed one."""
    if not is_mixed(options):
        return
    forward, dtype = model.forward, COMPUTE[options.precision]

    @functools.wraps(forward)
    def mixed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, dtype=dtype):
            return forward(*args, **kwargs)

    model.forward = mixed  # an instance's own: DDP and FSDP then wrap it like any other


def gradient_scaler(options: TrainingOptions, device: Device) -> torch.amp.GradScaler:
    """The scaler of fp16, whose small gradients would vanish; for every other precision it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
