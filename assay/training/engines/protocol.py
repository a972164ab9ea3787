"""What the step loop needs of an engine, and how an engine says that it did not engage."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from assay.device import Device
from assay.errors import RunFailed
from assay.options import TrainingOptions
from assay.training.task import Task
from assay.world import World


@dataclass(frozen=True)
class Setting:
    """What an engine is made for."""

    options: TrainingOptions
    task: Task
    world: World
    device: Device


class Engine(Protocol):
    """A model spread over the ranks, with its gradients and its optimizer.

    Made by `ENGINES[name](setting)`, which gives this rank its part of the model, with memory and initial weights. Every
    rank calls every method equally often.
    """

    @property
    def module(self) -> nn.Module:
        """What is called: the model as the engine wraps it."""

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around one forward and backward. Gradients are whole after the `last` one of a step; before, as the engine likes."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss` (this pass's part of the step's loss: parts of all passes and ranks sum to it)."""

    def update(self, lr: float) -> torch.Tensor:
        """Clip to options.clip, one AdamW step at `lr`, gradients dropped; the global gradient norm before, a scalar."""

    def drop_gradients(self) -> None:
        """Forget what was accumulated, as if no backward had been since the last update; optimizer states stay untouched."""

    def own_gradients(self) -> list[torch.Tensor]:
        """After the last backward of a step: this rank's part of the exchanged gradients, plain tensors."""

    def assert_engaged(self) -> str:
        """What was shown, in a few words, after a whole backward. Raises RunFailed if the engine is not what it is called."""


MakeEngine = Callable[[Setting], Engine]


def expect(holds: bool, engine: str, otherwise: str) -> None:
    """Raise RunFailed, saying that `engine` did not engage, unless `holds`."""
    if not holds:
        raise RunFailed(
            f"engine {engine} did not engage: {otherwise}; the figures would be another engine's, so nothing is measured"
        )
