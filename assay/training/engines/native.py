"""The engines that torch itself brings: one process, DistributedDataParallel, and FSDP2, also as HSDP."""

import contextlib
import inspect
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel

from assay.training.engines.protocol import Setting, expect
from assay.training.fast_ops import speed_up
from assay.training.model import materialise
from assay.training.optimizer import clip_gradients, make_optimizer
from assay.training.precision import COMPUTE, gradient_scaler, is_mixed, run_mixed

# The only buffers are rotary frequencies and positions, alike everywhere: no reason to broadcast them in each forward.
# torch 2.13 renamed the switch and warns about the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if _RENAMED else "broadcast_buffers"


def build(setting: Setting) -> nn.Module:
    """The task's model on meta, with faster layers, and their recomputation and compilation as the options ask for."""
    options, task = setting.options, setting.task
    model = task.build()
    speed_up(model)
    if options.checkpointing:
        recompute(model)
    if options.compile:
        for layer in task.layers(model):
            layer.compile()
    return model


def recompute(model: nn.Module) -> None:
    """Make a model of transformers keep only the inputs of its layers for backward."""
    # transformers 5.23 renamed the method and its argument, and warns about the old names.
    renamed = hasattr(model, "activation_checkpointing_enable")
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    name = "activation_checkpointing_kwargs" if renamed else "gradient_checkpointing_kwargs"
    enable(**{name: {"use_reentrant": False}})  # type: ignore[operator] # transformers' own, no module


class Plain:
    """One process, the model as it is."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.module: nn.Module = self._spread(build(setting))
        self._optimizer = make_optimizer(self.module, setting.options)
        self._trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._scaler = gradient_scaler(setting.options, setting.device)
        self._scale = 1.0  # of a pass's part of the loss, where gradients are averaged over ranks

    def _spread(self, model: nn.Module) -> nn.Module:
        materialise(model, self._setting.device)
        self._setting.task.initialise(model)
        run_mixed(model, self._setting.options, self._setting.device)
        return model

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Nothing to exchange."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Autograd's, with fp16's scaling."""
        scaled: torch.Tensor = self._scaler.scale(loss * self._scale if self._scale != 1 else loss)
        scaled.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped

    def update(self, lr: float) -> torch.Tensor:
        """Clip, AdamW, drop. With fp16, a step whose gradients overflowed changes nothing, and its norm is infinite."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._scaler.unscale_(self._optimizer)
        norm = clip_gradients(self._trained, self._setting.options.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        """Free them."""
        self._optimizer.zero_grad(set_to_none=True)

    def own_gradients(self) -> list[torch.Tensor]:
        """All of them."""
        return [
            p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in self._trained if p.grad is not None
        ]

    def assert_engaged(self) -> str:
        """One rank, and every parameter whole."""
        ranks = self._setting.world.size
        expect(ranks == 1, "none", f"the world has {ranks} ranks that would train apart")
        sharded = next((name for name, p in self.module.named_parameters() if isinstance(p, DTensor)), None)
        expect(sharded is None, "none", f"{sharded} is sharded")
        wrapped = isinstance(self.module, DistributedDataParallel | FSDPModule)
        expect(not wrapped, "none", f"the model is {type(self.module).__name__}")
        return "one rank, model not wrapped"


class DataParallel(Plain):
    """torch's DistributedDataParallel: the whole model on each rank, gradients averaged."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._scale = setting.world.size

    def _spread(self, model: nn.Module) -> nn.Module:
        quiet = {_SYNC_BUFFERS: False}
        whole = super()._spread(model)
        return DistributedDataParallel(whole, gradient_as_bucket_view=True, **quiet)  # type: ignore[arg-type] # the name is torch's choice

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """`no_sync` in all passes but the last."""
        assert isinstance(self.module, DistributedDataParallel)
        with contextlib.nullcontext() if last else self.module.no_sync():
            yield

    def assert_engaged(self) -> str:
        """The wrapper, its group's size, and gradients that are bit-equal on all ranks although their data differ."""
        world = self._setting.world
        name = type(self.module).__name__
        expect(isinstance(self.module, DistributedDataParallel), "ddp", f"the model is {name}")
        group = self.module.process_group.size()  # type: ignore[operator] # just looked
        expect(group == world.size, "ddp", f"its process group has {group} of {world.size} ranks")
        own = [_sum_of_bits(gradient) for gradient in self.own_gradients()]
        differ = world.total(float(own != world.broadcast(own)))
        expect(differ == 0, "ddp", "gradients differ between ranks after a backward")
        return f"DistributedDataParallel over {group} ranks, gradients bit-equal on all"


class FullyShardedParallel(Plain):
    """FSDP2, torch's `fully_shard`: each rank keeps its rows of every parameter, gradient and optimizer state.

    With --shard-ranks fewer than the world it is HSDP: copies of the model, each over so many neighbouring ranks, whose
    gradients are averaged.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._scale = setting.world.size

    def _mesh(self) -> DeviceMesh:
        world, sharing = self._setting.world.size, self._setting.options.shard_ranks
        if sharing in (0, world):
            return init_device_mesh(self._setting.device.type, (world,))
        shape, names = (world // sharing, sharing), ("replicate", "shard")
        return init_device_mesh(self._setting.device.type, shape, mesh_dim_names=names)

    def _spread(self, model: nn.Module) -> nn.Module:
        # Sharded while on meta, layer by layer, so that only this rank's rows ever get memory.
        options, mesh = self._setting.options, self._mesh()
        dtype = COMPUTE[options.precision] if is_mixed(options) else None
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
        for layer in self._setting.task.layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        materialise(model, self._setting.device)
        self._setting.task.initialise(model)
        return model

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Every pass is reduced, and its rows added: unreduced, the gradients would take the memory of the whole model."""
        return contextlib.nullcontext()

    def assert_engaged(self) -> str:
        """Every layer and the root sharded; each trained parameter and its reduced gradient in rows over the ranks."""
        world, sharing = self._setting.world, self._setting.options.shard_ranks or self._setting.world.size
        for part in (self.module, *self._setting.task.layers(self.module)):
            expect(isinstance(part, FSDPModule), "fsdp", f"{type(part).__name__} is not sharded")
        own = 0
        for name, parameter in self.module.named_parameters():
            own += _in_rows(parameter, f"the parameter {name}", world.size, sharing).numel()
            if parameter.requires_grad:
                # FSDP2 leaves a sharded gradient only after its reduce-scatter; without the exchange there is none.
                _in_rows(parameter.grad, f"the gradient of {name}", world.size, sharing)
        copies = world.size // sharing
        held, total = int(world.total(own)), copies * sum(parameter.numel() for parameter in self.module.parameters())
        expect(held == total, "fsdp", f"ranks hold {held} elements of {total}")
        kind = "FSDP2" if copies == 1 else f"HSDP, {copies} copies of FSDP2"
        return f"{kind} over {sharing} ranks, parameters and reduced gradients DTensor Shard(0)"


def _sum_of_bits(values: torch.Tensor) -> int:
    # Exact in any order, and defined for infinities too. Unequal bits cannot share the sums of all parameters by chance.
    whole = torch.int32 if values.element_size() == 4 else torch.int16
    return int(values.detach().view(whole).sum(dtype=torch.int64))


def _in_rows(tensor: torch.Tensor | None, what: str, world: int, sharing: int) -> torch.Tensor:
    wanted = (Shard(0),) if sharing == world else (Replicate(), Shard(0))
    if not (isinstance(tensor, DTensor) and tensor.placements == wanted):
        expect(False, "fsdp", f"{what} is {type(tensor).__name__}, not a DTensor in rows")
    assert isinstance(tensor, DTensor)
    sizes = tuple(tensor.device_mesh.shape)
    expect(
        sizes == ((world,) if sharing == world else (world // sharing, sharing)),
        "fsdp",
        f"{what} lies over {sizes} ranks",
    )
    local: torch.Tensor = tensor.to_local()
    return local
