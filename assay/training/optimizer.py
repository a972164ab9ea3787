"""AdamW as the training scripts use it, its learning rate, and the norm of all gradients."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from assay.options import TrainingOptions

BETA1 = 0.9

# Where torch has one kernel for the whole update. Other devices get torch's own choice.
_FUSED_ON = {"cpu", "cuda", "xpu", "mps"}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """What is trained, in two groups: matrices are decayed, norms and biases are not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    vectors = [parameter for parameter in trained if parameter.dim() <= 1]
    groups: list[dict[str, object]] = [{"params": matrices, "weight_decay": weight_decay}]
    return [*groups, {"params": vectors, "weight_decay": 0.0}] if vectors else groups


def make_optimizer(module: nn.Module, options: TrainingOptions) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over what is trained."""
    groups = parameter_groups(module, options.weight_decay)
    devices = {parameter.device.type for parameter in module.parameters()}
    fused = True if devices <= _FUSED_ON else None
    return torch.optim.AdamW(groups, lr=options.lr, betas=(BETA1, options.beta2), fused=fused)


def learning_rate(step: int, options: TrainingOptions) -> float:
    """Linear warm-up to --lr, then down to --min-lr-ratio of it at the last step, by a cosine or in a line.

    Source of the cosine: Loshchilov & Hutter 2017.
    """
    if step < options.lr_warmup_steps:
        return options.lr * (step + 1) / options.lr_warmup_steps
    last = options.warmup_steps + options.steps - 1
    progress = min(1.0, (step - options.lr_warmup_steps) / max(1, last - options.lr_warmup_steps))
    left = (1 + math.cos(math.pi * progress)) / 2 if options.schedule == "cosine" else 1 - progress
    return options.lr * (options.min_lr_ratio + (1 - options.min_lr_ratio) * left)


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most `largest`; the norm before, a scalar, alike on all ranks."""
    norm = _global_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def _global_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    # Row by row, then over the rows: torch's own norm of a whole matrix loses 1e-6 and more in float32 on the CPU, and
    # loses it differently when the matrix is sharded, so that engines would seem to disagree.
    own = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    rows = [torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32).view(-1) for gradient in own]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.cat(rows))
    if isinstance(gradients[0], DTensor):
        square = norm.square()
        # Over the ranks that share one copy: other copies hold the same rows again.
        sharing = next(i for i, placement in enumerate(gradients[0].placements) if isinstance(placement, Shard))
        dist.all_reduce(square, group=gradients[0].device_mesh.get_group(sharing))
        norm = square.sqrt()
    return norm
