"""Hugging Face accelerate, as its own loop would use it: data parallel through its `prepare`, `backward` and step."""

import contextlib
import os
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from assay.errors import BadInput
from assay.training.engines.native import build
from assay.training.engines.protocol import Engine, Setting, expect
from assay.training.model import materialise
from assay.training.optimizer import clip_gradients, make_optimizer
from assay.training.precision import is_mixed


def make_accelerate(setting: Setting) -> Engine:
    """accelerate over all ranks. Raises BadInput if it is not installed or lacks the precision on the device."""
    return Accelerated(setting)


class Accelerated:
    """What Accelerator.prepare makes of model and optimizer: DistributedDataParallel, or the bare model of one rank."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._accelerator = _open_accelerator(setting)
        model = build(setting)
        materialise(model, setting.device)
        setting.task.initialise(model)
        with warnings.catch_warnings():
            # torch 2.13 renamed the switch that accelerate sets.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers")
            self.module: nn.Module
            self.module, self._optimizer = self._accelerator.prepare(model, make_optimizer(model, setting.options))
        self._trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """accelerate's `no_sync` in all passes but the last."""
        quiet: contextlib.AbstractContextManager[None] = self._accelerator.no_sync(self.module)
        return contextlib.nullcontext() if last else quiet

    def backward(self, loss: torch.Tensor) -> None:
        """accelerate's, with fp16's scaling; gradients are averaged over ranks, the parts of the loss are to be summed."""
        self._accelerator.backward(loss * self._setting.world.size)

    def update(self, lr: float) -> torch.Tensor:
        """accelerate's step, with our own norm. With fp16, a step whose gradients overflowed changes nothing."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        # What its clip_grad_norm_ does, but torch's norm of a whole matrix is wrong by 3e-5 on a CPU.
        self._accelerator.unscale_gradients(self._optimizer)
        norm = clip_gradients(self._trained, self._setting.options.clip)
        self._optimizer.step()
        self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        """Free them."""
        self._optimizer.zero_grad(set_to_none=True)

    def own_gradients(self) -> list[torch.Tensor]:
        """All of them."""
        return [parameter.grad for parameter in self._trained if parameter.grad is not None]

    def assert_engaged(self) -> str:
        """How accelerate says that it distributes, and that the model is wrapped over all ranks: it may silently not be."""
        world, state = self._setting.world, self._accelerator
        several = f"MULTI_{'GPU' if self._setting.device.type == 'cuda' else self._setting.device.type.upper()}"
        kind = state.distributed_type.value
        # One rank is wrapped too where a launcher started it.
        expect(kind == several or (kind == "NO" and world.size == 1), "accelerate", f"its distributed_type is {kind}")
        expect(state.num_processes == world.size, "accelerate", f"it knows {state.num_processes} of {world.size} ranks")
        if kind == "NO":
            return "accelerate on one rank, model not wrapped"
        name = type(self.module).__name__
        expect(isinstance(self.module, DistributedDataParallel), "accelerate", f"the model is {name}")
        group = self.module.process_group.size()  # type: ignore[operator] # just looked
        expect(group == world.size, "accelerate", f"its process group has {group} of {world.size} ranks")
        return f"accelerate {kind}, {name} over {group} ranks"


def _open_accelerator(setting: Setting) -> Any:
    options, device = setting.options, setting.device
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise BadInput(
            f"--engine accelerate: it cannot be imported ({error}); pip install accelerate, or use --engine ddp"
        ) from None
    # Where nobody has set it, accelerate would give every rank another number of threads than the other engines have.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # The only buffers are positions and their frequencies, alike everywhere: no reason to send them in each forward.
    wrapping = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    precision = options.precision if is_mixed(options) else "no"
    try:
        return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[wrapping])
    except ValueError as error:
        raise BadInput(f"--engine accelerate with --precision {options.precision} on {device.type}: {error}") from None
