"""DeepSpeed's ZeRO 1, 2 and 3 (Rajbhandari et al. 2020), with the optimizer's states on the host if asked for."""

import contextlib
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from assay.errors import BadInput
from assay.training.engines.deepspeed_ops import open_deepspeed
from assay.training.engines.native import build
from assay.training.engines.protocol import Engine, Setting, expect
from assay.training.model import count_parameters, materialise
from assay.training.optimizer import make_optimizer
from assay.training.precision import COMPUTE, is_mixed
from assay.training.weights import row_range

_OPTIMIZERS = {1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer", 3: "DeepSpeedZeroOptimizer_Stage3"}
_BUCKET = 500_000_000  # elements that DeepSpeed reduces at once unless told otherwise


def make_zero(setting: Setting) -> Engine:
    """ZeRO of the stage that --engine names. Raises BadInput where DeepSpeed or the device cannot do it."""
    return Zero(setting)


class Zero:
    """A DeepSpeedEngine. Stage 1 shares out the optimizer's states, 2 the gradients too, 3 the parameters too."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._name = setting.options.engine
        self._stage = int(self._name.removeprefix("zero"))
        deepspeed = open_deepspeed(self._name, setting.world, setting.device)
        _check_precision(setting)
        model = build(setting)
        config = _config(setting, self._stage, count_parameters(model))
        optimizer = (_partition if self._stage == 3 else _fill)(deepspeed, model, config, setting)
        self.module: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        self._zero: Any = self.module.optimizer

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Stage 1 exchanges gradients in the last pass only; stages 2 and 3, which keep but a part of them, in each."""
        self.module.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """DeepSpeed averages over ranks; the parts of the loss are to be summed."""
        self.module.backward(loss * self._setting.world.size, scale_wrt_gas=False)

    def update(self, lr: float) -> torch.Tensor:
        """DeepSpeed's step. One whose gradients are not finite changes nothing, and its norm is infinite."""
        for group in self._zero.param_groups:
            group["lr"] = lr
        self.module.step()
        return torch.as_tensor(self.module.get_global_grad_norm())

    def drop_gradients(self) -> None:
        """As DeepSpeed itself drops them where fp16 overflowed, but no step is counted and no loss scale changed."""
        zero = self._zero
        zero.zero_grad(set_to_none=True)
        zero.averaged_gradients = {} if self._stage == 3 else dict.fromkeys(zero.averaged_gradients)
        if self._stage < 3:
            # Host buffers are added to from the second pass of a step on.
            zero.micro_step_id = -1
            zero._offload_accumulated_param_ids = set()
        if self._setting.options.offload:
            zero.reset_cpu_buffers()

    def own_gradients(self) -> list[torch.Tensor]:
        """This rank's partition of the averaged gradients, without the loss scale; padding is zero."""
        if self._setting.options.offload:
            found = [flat.grad for flat in self._flat()]
        else:
            found = [part for group in self._zero.averaged_gradients.values() for part in group or ()]
        return [part / self._zero.loss_scale for part in found]

    def assert_engaged(self) -> str:
        """Engine, stage, optimizer, group, and that each rank updates its share of the parameters, all together all."""
        world, offload = self._setting.world, self._setting.options.offload
        expect(
            type(self.module).__name__ == "DeepSpeedEngine", self._name, f"the model is {type(self.module).__name__}"
        )
        stage, kind = int(self.module.zero_optimization_stage()), type(self._zero).__name__
        expect(stage == self._stage, self._name, f"DeepSpeed runs stage {stage}")
        expect(kind == _OPTIMIZERS[self._stage], self._name, f"its optimizer is {kind}")
        shares = getattr(self._zero, "partition_gradients", True)
        expect(shares == (self._stage > 1), self._name, "gradients are not shared out as its stage says")
        group = self.module.dp_world_size
        expect(group == world.size, self._name, f"its process group has {group} of {world.size} ranks")

        trained = [p for p in self.module.module.parameters() if p.requires_grad]
        total = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
        held = sum(flat.numel() for flat in self._flat())
        # Partitions are padded: of each matrix (3) or of each of two groups (1, 2) to a multiple of the ranks.
        spare = world.size * (len(trained) + 4)
        share = f"this rank updates {held} of {total} parameters on {world.size} ranks"
        expect(held * world.size <= total + spare, self._name, share)
        everywhere = int(world.total(held))
        expect(total <= everywhere, self._name, f"all ranks together update {everywhere} of {total} parameters")
        if self._stage == 3:
            whole = [p for p in trained if p.ds_tensor.numel() != -(-p.ds_numel // world.size)]
            expect(not whole, self._name, f"{len(whole)} of {len(trained)} parameters are not shared out")
        away = all(flat.device.type == "cpu" for flat in self._flat())
        expect(away or not offload, self._name, "the optimizer's states are not on the host")
        update = f"{type(self._zero.optimizer).__name__} on {'the host' if offload else self._setting.device.type}"
        return f"DeepSpeedEngine, ZeRO {stage} over {group} ranks, {held:,} of {total:,} parameters here, {update}"

    def _flat(self) -> list[torch.Tensor]:
        """What this rank updates: float32, flat, one for each group of parameters."""
        zero = self._zero
        return list(zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups)


def _check_precision(setting: Setting) -> None:
    from deepspeed.accelerator import get_accelerator

    if setting.options.precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise BadInput(f"--precision fp16: DeepSpeed has none on {setting.device.type}; use fp32 or bf16")


def _config(setting: Setting, stage: int, parameters: int) -> dict[str, Any]:
    options = setting.options
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(_BUCKET, parameters)}
    if options.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": setting.device.type != "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "gradient_accumulation_steps": 1,  # the step loop says itself which pass is the last
        "gradient_clipping": options.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as fast and needs no compiler
        "steps_per_print": 2**62,
        # It would wait for the device in every step, to print what we measure.
        "timers": {"throughput": {"enabled": False}},
    }
    if is_mixed(options):
        config[options.precision] = {"enabled": True}
    return config


def _fill(deepspeed: Any, model: nn.Module, config: dict[str, Any], setting: Setting) -> torch.optim.Optimizer:
    """Give each rank the whole model, as stages 1 and 2 want it."""
    materialise(model, setting.device)
    setting.task.initialise(model)
    return _optimizer(model, setting)


def _partition(deepspeed: Any, model: nn.Module, config: dict[str, Any], setting: Setting) -> torch.optim.Optimizer:
    """Give each rank its part of each parameter, as stage 3 wants it. No rank ever holds the whole model.

    Each rank makes (or reads) its rows of every parameter; then the parameters are put together and dealt out in
    DeepSpeed's way, one after the other. Memory: two parts of the model and its largest matrix.
    """
    _cut_into_rows(model, setting)
    materialise(model, setting.device)
    setting.task.initialise(model)
    optimizer = _optimizer(model, setting)  # now, while parameters have the shapes that weight decay goes by
    dealt: dict[nn.Parameter, nn.Parameter] = {}
    for owner in list(model.modules()):
        for name, rows in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if rows not in dealt:
                dealt[rows] = _put_together(rows, COMPUTE[setting.options.precision])
                deepspeed.zero.Init(module=nn.ParameterList([dealt[rows]]), config_dict_or_path=config)
            owner.register_parameter(name, dealt[rows])
    for group in optimizer.param_groups:
        group["params"] = [dealt[rows] for rows in group["params"]]
    return optimizer


def _cut_into_rows(model: nn.Module, setting: Setting) -> None:
    # What FSDP2 does to a model on meta, so that tasks know how to fill it.
    world, mesh = setting.world, init_device_mesh(setting.device.type, (setting.world.size,))
    cut: dict[nn.Parameter, nn.Parameter] = {}
    for owner in list(model.modules()):
        for name, whole in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if whole not in cut:
                first, last = row_range(whole.shape[0], world.size, world.rank)
                rows = DTensor.from_local(
                    whole.detach()[first:last],
                    mesh,
                    [Shard(0)],
                    run_check=False,
                    shape=whole.shape,
                    stride=whole.stride(),
                )
                cut[whole] = nn.Parameter(rows, requires_grad=whole.requires_grad)
            owner.register_parameter(name, cut[whole])


def _put_together(rows: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    assert isinstance(rows.data, DTensor)
    whole = rows.data.full_tensor()
    return nn.Parameter(whole.to(dtype) if whole.is_floating_point() else whole, requires_grad=rows.requires_grad)


def _optimizer(model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    optimizer = make_optimizer(model, setting.options)
    if setting.options.offload:
        for group in optimizer.param_groups:
            group["fused"] = True  # the host has the kernel, whatever the device
    return optimizer
