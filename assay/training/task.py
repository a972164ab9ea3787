"""What a workload brings to the step loop: its model, its data and its loss. All else is alike for every workload."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

Batch = Mapping[str, torch.Tensor]
"""Tensors of one forward pass, the first dimension of each being the sequences."""

TOKENS = "tokens"
"""The key of `Task.sizes` that is no term of the loss: tokens that are no padding."""


class Task(Protocol):
    """A workload. Sequences are numbered: position p of the endless training order is the same whatever the world.

    The loss of a step is, over the terms that `loss_sums` names, Σ over all its sequences of the term's sum / the term's
    size in the whole global batch. So it does not matter how the batch is cut into passes and ranks.
    """

    @property
    def held_out(self) -> int:
        """How many sequences are kept for evaluation."""

    def build(self) -> nn.Module:
        """The model on the meta device: shapes and names, no memory yet."""

    def initialise(self, model: nn.Module) -> None:
        """Write the initial weights into a model that has memory: of a sharded one, this rank's part only."""

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The repeated layers of what `build` made, in order: what engines shard, compile and recompute one by one."""

    def flops_per_token(self, model: nn.Module) -> float:
        """Model FLOPs of forward and backward per token that is no padding, on average over the data; no recomputation."""

    def batch(self, positions: Sequence[int]) -> Batch:
        """The sequences at these positions of the training order, on the host."""

    def held_out_batch(self, indices: Sequence[int]) -> Batch:
        """These of the `held_out` sequences, on the host."""

    def sizes(self, positions: Sequence[int]) -> Mapping[str, int]:
        """Of these sequences together: "tokens" (no padding counted), and for each term of the loss what it is a mean over."""

    def loss_sums(self, module: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The terms of the loss, each summed over the batch: scalars with gradients, float32."""

    def scores(self, module: nn.Module, batch: Batch) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """What evaluation measures, without gradients: metric → (sum per sequence, what it is over per sequence), both [B]."""
