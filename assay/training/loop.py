"""One training step, what is recorded of it, and the evaluation afterwards."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from assay.device import Device
from assay.options import PretrainOptions
from assay.training.data import Data, train_batch
from assay.training.engines import Engine, clip_gradients
from assay.world import World

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Job:
    """All that a step works with. `module`: what the engine made of the model."""

    options: PretrainOptions
    module: nn.Module
    engine: Engine
    optimizer: torch.optim.Optimizer
    data: Data
    world: World
    device: Device


def make_optimizer(module: nn.Module, options: PretrainOptions) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; norms and biases are not decayed."""
    matrices = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in module.parameters() if parameter.dim() <= 1]
    groups: list[dict[str, object]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=BETAS, weight_decay=options.weight_decay)


def learning_rate(step: int, options: PretrainOptions) -> float:
    """Linear warm-up to --lr, then a cosine down to --min-lr-ratio of it at the last step (Loshchilov & Hutter 2017)."""
    if step < options.lr_warmup_steps:
        return options.lr * (step + 1) / options.lr_warmup_steps
    last = options.warmup_steps + options.steps - 1
    progress = min(1.0, (step - options.lr_warmup_steps) / max(1, last - options.lr_warmup_steps))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return options.lr * (options.min_lr_ratio + (1 - options.min_lr_ratio) * cosine)


def next_token_losses(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each next token, in nats and float32. rows: [B, T + 1]; result: [B, T]."""
    inputs, targets = rows[:, :-1], rows[:, 1:]
    logits: torch.Tensor = module(input_ids=inputs, use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def accumulate_gradients(job: Job, step: int) -> torch.Tensor:
    """Forward and backward of this rank's share of the global batch; its mean loss, a scalar on the device."""
    passes = job.options.accumulation(job.world.size)
    total = torch.zeros((), device=job.device.torch_device)
    for micro in range(passes):
        rows = train_batch(job.data, job.options, step, micro, job.world, job.device.torch_device)
        with job.engine.backward(job.module, last=micro == passes - 1):
            loss = next_token_losses(job.module, rows).mean() / passes
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
        total += loss.detach()
    return total


def train_step(job: Job, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer step over the global batch: mean loss over all ranks, and gradient norm before clipping (scalars)."""
    for group in job.optimizer.param_groups:
        group["lr"] = learning_rate(step, job.options)
    loss = accumulate_gradients(job, step)
    norm = clip_gradients([p for group in job.optimizer.param_groups for p in group["params"]], job.options.clip)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    if job.world.size > 1:
        dist.all_reduce(loss)
        loss /= job.world.size
    return loss, norm


def prove_engine(job: Job) -> str:
    """One backward on the first batch, the engine's proof from its gradients, and the gradients dropped again.

    Raises RunFailed if the engine did not engage.
    """
    accumulate_gradients(job, step=0)
    proof = job.engine.assert_engaged(job.module, job.world)
    job.optimizer.zero_grad(set_to_none=True)
    return proof


def evaluate(job: Job) -> float | None:
    """Mean loss over held-out sequences, --eval-batches global batches or all there are; None if that is 0."""
    count = min(job.options.eval_batches * job.options.global_batch, job.data.held_out)
    if count == 0:
        return None
    job.module.eval()
    sums: list[float] = []
    with torch.no_grad():
        for rows, kept in _held_out_batches(job, count):
            # Added on the host: not every device has float64.
            sums += next_token_losses(job.module, rows).mean(dim=1)[:kept].tolist()
    job.module.train()
    parts = job.world.collect(math.fsum(sums))
    # Added exactly, in one place: a reduction's last digit would depend on the number of ranks.
    return job.world.broadcast(math.fsum(parts or ())) / count


def _held_out_batches(job: Job, count: int) -> Iterator[tuple[torch.Tensor, int]]:
    # Every rank must call a sharded model equally often: who has too few sequences repeats one and does not count it.
    size, world = job.options.micro_batch, job.world
    for first in range(0, count, size * world.size):
        mine = range(first + world.rank * size, first + (world.rank + 1) * size)
        rows = np.stack([job.data.held_out_row(min(index, count - 1)) for index in mine])
        yield torch.from_numpy(rows).to(job.device.torch_device), max(0, min(size, count - mine.start))
