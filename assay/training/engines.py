"""Engines: how a model is spread over the ranks. Each proves that it really is, because wrapping can fail silently."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from assay.device import Device
from assay.errors import RunFailed
from assay.training.model import decoder_layers, materialise
from assay.world import World

Fill = Callable[[nn.Module], None]
"""Writes the initial weights into a model that has memory."""

# The only buffers are rotary frequencies, alike everywhere: no reason to broadcast them in each forward. torch 2.13
# renamed the switch and warns about the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if _RENAMED else "broadcast_buffers"


class Engine(Protocol):
    """What the step loop needs of an engine."""

    def spread(self, model: nn.Module, fill: Fill, world: World, device: Device) -> nn.Module:
        """A meta model becomes one that this rank can call, with memory for this rank's part and initial weights."""

    def backward(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around one forward and backward: gradients are exchanged only in the `last` one of a step."""

    def assert_engaged(self, module: nn.Module, world: World) -> str:
        """What was shown, in a few words, after a backward on data that differ by rank.

        Raises RunFailed if the ranks do not really train one model together. All ranks call it.
        """


class Plain:
    """One process, the model as it is."""

    def spread(self, model: nn.Module, fill: Fill, world: World, device: Device) -> nn.Module:
        """Whole model, no wrapper."""
        materialise(model, device)
        fill(model)
        return model

    @contextlib.contextmanager
    def backward(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Nothing to exchange."""
        yield

    def assert_engaged(self, module: nn.Module, world: World) -> str:
        """One rank, and every parameter whole."""
        _expect(world.size == 1, "none", f"the world has {world.size} ranks that would train apart")
        whole = not any(isinstance(parameter, DTensor) for parameter in module.parameters())
        _expect(whole and type(module).__name__ == "LlamaForCausalLM", "none", f"the model is {type(module).__name__}")
        return "one rank, model not wrapped"


class DataParallel:
    """torch's DistributedDataParallel: the whole model on each rank, gradients averaged."""

    def spread(self, model: nn.Module, fill: Fill, world: World, device: Device) -> nn.Module:
        """Whole model on each rank, wrapped."""
        materialise(model, device)
        fill(model)
        quiet = {_SYNC_BUFFERS: False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **quiet)  # type: ignore[arg-type] # the name is torch's choice

    @contextlib.contextmanager
    def backward(self, module: nn.Module, last: bool) -> Iterator[None]:
        """`no_sync` in all passes but the last."""
        with contextlib.nullcontext() if last else _data_parallel(module).no_sync():
            yield

    def assert_engaged(self, module: nn.Module, world: World) -> str:
        """The wrapper, its group's size, and gradients that are bit-equal on all ranks although their data differ."""
        group = _data_parallel(module).process_group.size()
        _expect(group == world.size, "ddp", f"its process group has {group} of {world.size} ranks")
        own = _gradient_marks(module)
        differ = world.total(float(own != world.broadcast(own)))
        _expect(differ == 0, "ddp", "gradients differ between ranks after a backward")
        return f"DistributedDataParallel over {group} ranks, gradients bit-equal on all"


class FullyShardedParallel:
    """FSDP2, torch's `fully_shard`: each rank keeps its rows of every parameter, gradient and optimizer state."""

    def spread(self, model: nn.Module, fill: Fill, world: World, device: Device) -> nn.Module:
        """Each decoder layer and the rest are sharded while on meta, so that only this rank's rows get memory."""
        mesh = init_device_mesh(device.type, (world.size,))
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        materialise(model, device)
        fill(model)
        return model

    @contextlib.contextmanager
    def backward(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Gradients stay unreduced in all passes but the last."""
        _fully_sharded(module).set_requires_gradient_sync(last)
        yield

    def assert_engaged(self, module: nn.Module, world: World) -> str:
        """Every layer and the root sharded; each parameter and its reduced gradient in rows over all ranks."""
        for part in (module, *decoder_layers(module)):
            _fully_sharded(part)
        own = 0
        for name, parameter in module.named_parameters():
            own += _in_rows(parameter, f"the parameter {name}", world).numel()
            # FSDP2 leaves a sharded gradient only after its reduce-scatter; without the exchange there is none.
            _in_rows(parameter.grad, f"the gradient of {name}", world)
        held, total = int(world.total(own)), sum(parameter.numel() for parameter in module.parameters())
        _expect(held == total, "fsdp", f"ranks hold {held} elements of {total}")
        return f"FSDP2 over {world.size} ranks, parameters and reduced gradients DTensor Shard(0)"


ENGINES: dict[str, Engine] = {"none": Plain(), "ddp": DataParallel(), "fsdp": FullyShardedParallel()}


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
        dist.all_reduce(square, group=gradients[0].device_mesh.get_group())
        norm = square.sqrt()
    return norm


def _gradient_marks(module: nn.Module) -> list[float]:
    # One sum per parameter: bit-equal gradients have equal sums, and different data cannot share them all by chance.
    return [float(p.grad.float().sum()) for p in module.parameters() if p.grad is not None]


def _data_parallel(module: nn.Module) -> DistributedDataParallel:
    if isinstance(module, DistributedDataParallel):
        return module
    raise RunFailed(_not_engaged("ddp", f"the model is {type(module).__name__}, not DistributedDataParallel"))


def _in_rows(tensor: torch.Tensor | None, what: str, world: World) -> torch.Tensor:
    if not (isinstance(tensor, DTensor) and tensor.placements == (Shard(0),)):
        raise RunFailed(_not_engaged("fsdp", f"{what} is {type(tensor).__name__}, not a DTensor in rows"))
    ranks = tensor.device_mesh.size()
    _expect(ranks == world.size, "fsdp", f"{what} lies over {ranks} of {world.size} ranks")
    local: torch.Tensor = tensor.to_local()
    return local


def _fully_sharded(module: nn.Module) -> FSDPModule:
    if isinstance(module, FSDPModule):
        return module
    raise RunFailed(_not_engaged("fsdp", f"{type(module).__name__} is not sharded"))


def _expect(holds: bool, engine: str, otherwise: str) -> None:
    if not holds:
        raise RunFailed(_not_engaged(engine, otherwise))


def _not_engaged(engine: str, why: str) -> str:
    return f"engine {engine} did not engage: {why}; the figures would be another engine's, so nothing is measured"
