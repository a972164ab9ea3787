"""FLOPs and bytes of a training step, counted by running its own code without memory: shapes, and no arithmetic.

The bytes are the traffic of an unfused execution, an upper bound: every operation reads each input and writes each output
once, and no cache keeps anything between two operations. Fused kernels and caches move less. Attention is counted in its
eager form, which writes its T × T scores: what torch makes of its fused attention without a device is no device's.
Mixed precision is counted with the casts of autocast on the CPU; weights, gradients and optimizer states are float32.
What an engine moves between ranks is not counted, and neither is recomputation.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from assay.device import HostDevice
from assay.options import PretrainOptions, TrainingOptions
from assay.presets import MODELS, ModelShape, parameters_of
from assay.record import Tags, TagValue
from assay.recorder import Recorder
from assay.roofline import StepWork
from assay.training.causal import CausalTask
from assay.training.data import DummyData
from assay.training.flops import FLOAT32, least_work
from assay.training.model import build_model, materialise
from assay.training.optimizer import clip_gradients, make_optimizer
from assay.training.precision import COMPUTE, is_mixed, run_mixed
from assay.world import World

METHODS = {
    "counted": "every operation of an unfused execution, run without memory: bytes are an upper bound",
    "analytic": "model FLOPs; bytes are a lower bound: weights, gradients, optimizer, activations kept for backward",
}

# They hand out memory or look at it anew, but their schemas do not say that nothing is read or written.
_MOVES_NOTHING = {"aten::_unsafe_view", "aten::empty_like", "aten::empty", "aten::empty_strided", "aten::new_empty"}


class ByteCounter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """While active, sums the bytes of the meta and fake tensors that every aten operation reads and writes. Views count nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if not func.is_view and func._schema.name not in _MOVES_NOTHING:
            self.bytes += _traffic(func, args, given, result)
        return result


def _traffic(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    taken = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    changed = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    written = _tensors([result, *(taken.get(name) for name in changed)])
    if not written:
        return 0  # asks for a size or a kind, and touches no element
    if func is torch.ops.aten.embedding.default:
        # A look-up reads the rows that it looks up, not the whole table.
        return 2 * _size(written) + _size(_tensors([taken["indices"]]))
    return _size(_tensors(taken.values())) + _size(written)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """Every meta or fake tensor among (nested) values, once."""
    found = {id(leaf): leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, torch.Tensor)}
    return [one for one in found.values() if isinstance(one, FakeTensor) or one.device.type == "meta"]


def _size(tensors: Iterable[torch.Tensor]) -> int:
    total = 0
    for tensor in tensors:
        elements = 1
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            elements *= length if stride else min(length, 1)  # an expanded dimension lies in memory once
        total += elements * tensor.element_size()
    return total


@dataclass(frozen=True)
class Count:
    """FLOP and B of something that was counted."""

    flops: int
    bytes: int


def count_passes(shape: ModelShape, options: PretrainOptions, micro_batch: int, passes: int = 1) -> Count:
    """Forward and backward of `passes` micro batches, the gradients of all but the first added to those before."""
    task = CausalTask(options, DummyData(options.seed, shape.vocab, options.seq_len))
    model = build_model(shape, options.seq_len, attention="eager")
    with _without_memory(options) as device:
        if device.type != "meta":
            materialise(model, HostDevice())
        _give_mask(model, options, device)
        run_mixed(model, options, HostDevice())
        rows = torch.empty(micro_batch, options.seq_len + 1, dtype=torch.long, device=device)
        with FlopCounterMode(display=False) as flops, ByteCounter() as moved:
            for _ in range(passes):
                loss = task.loss_sums(model, {"rows": rows})["loss"] / rows.numel()
                loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
    return Count(int(flops.get_total_flops()), moved.bytes)


@contextlib.contextmanager
def _without_memory(options: PretrainOptions) -> Iterator[torch.device]:
    """The device on which tensors have no memory: meta, or for mixed precision a CPU that is only claimed."""
    if not is_mixed(options):
        yield torch.device("meta")
        return
    # Autocast knows no meta device. Fake tensors say that they are on the CPU, and take twice as long to count.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cpu")


def _give_mask(model: nn.Module, options: PretrainOptions, device: torch.device) -> None:
    # Left to itself, transformers looks into the positions for packed sequences, and here there is nothing to see.
    mask = torch.empty(1, 1, options.seq_len, options.seq_len, dtype=COMPUTE[options.precision], device=device)
    model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
    )


def count_update(shape: ModelShape, options: PretrainOptions) -> int:
    """Bytes of one clipping and AdamW update of all parameters, with optimizer state from the step before."""
    model = build_model(shape, options.seq_len)
    optimizer = make_optimizer(model, options)
    for _ in range(2):  # the first step makes the state, the second is like all others
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        moved = ByteCounter()
        with moved:
            clip_gradients(list(model.parameters()), options.clip)
            optimizer.step()
    return moved.bytes


def count_work(shape: ModelShape, options: PretrainOptions, passes: int = 1, shards: int = 1) -> StepWork:
    """One rank's optimizer step of `passes` micro batches as a function of its samples, parameters updated in `shards`.

    Counted are models of one and two layers at two micro batches, because layers are alike and every tensor grows
    linearly with the batch or not at all; a third model and micro batch must lie on the lines. (Micro batches of one
    sample move a little less than the line says: some copies become views.) Each further pass adds its gradients to those
    before: 3·N·4 (both read, one written; N parameters in float32). Raises ValueError if the counts are on no straight
    lines, and whatever torch or the model raises if it cannot run on the meta device.
    """

    def of_layers(count: int) -> ModelShape:
        return replace(shape, layers=count)

    counts = {(n, batch): count_passes(of_layers(n), options, batch) for n in (1, 2) for batch in (2, 3)}
    seen, three = count_passes(of_layers(3), options, 4), _one_pass(counts, 3)
    if (seen.flops, seen.bytes) != (three.flops(4), three.bytes(4)):
        raise ValueError(
            f"3 layers at micro batch 4 count {seen.flops:,} FLOP and {seen.bytes:,} B where straight lines through 1 and "
            f"2 layers at 2 and 3 give {three.flops(4):,} and {three.bytes(4):,}"
        )
    one = _one_pass(counts, shape.layers)
    gradients = parameters_of(shape, options.seq_len) * FLOAT32
    updates = [count_update(of_layers(n), options) for n in (1, 2)]
    update = _line(updates[0], updates[1], shape.layers)
    fixed = passes * one.bytes_fixed + (passes - 1) * 3 * gradients + math.ceil(update / shards)
    return replace(one, bytes_fixed=fixed)


def _one_pass(counts: Mapping[tuple[int, int], Count], layers: int) -> StepWork:
    """Forward and backward of so many layers, out of the counts of 1 and 2 layers at micro batches 2 and 3."""
    flops = [_line(counts[1, batch].flops, counts[2, batch].flops, layers) for batch in (2, 3)]
    moved = [_line(counts[1, batch].bytes, counts[2, batch].bytes, layers) for batch in (2, 3)]
    return StepWork(flops[1] - flops[0], 3 * moved[0] - 2 * moved[1], moved[1] - moved[0])


def _line(one: int, two: int, layers: int) -> int:
    return one + (two - one) * (layers - 1)


def update_shards(options: TrainingOptions, ranks: int) -> int:
    """Over how many ranks the gradients and the optimizer's update are dealt: all, those of one copy, or none of them."""
    if options.engine == "fsdp":
        return options.shard_ranks or ranks
    return ranks if options.engine in ("zero1", "zero2", "zero3") else 1


def record_work(options: PretrainOptions, world: World, recorder: Recorder, tags: Tags) -> None:
    """Record FLOPs and bytes of one rank's step, counted and analytic, with the lines that they lie on as tags.

    What cannot be counted is null with the reason; the run goes on.
    """
    for kind, (work, reason) in _works(options, world).items():
        about: dict[str, TagValue] = {**tags, "method": METHODS[kind]}
        passes = options.accumulation(world.size)
        if work:
            about |= {**vars(work), "micro_batch": options.micro_batch, "passes": passes}
        samples = options.micro_batch * passes
        recorder.block(f"step_flops_{kind}", "FLOP", [work.flops(samples) if work else None], about, reason=reason)
        recorder.block(f"step_bytes_{kind}", "B", [work.bytes(samples) if work else None], about, reason=reason)


def _works(options: PretrainOptions, world: World) -> dict[str, tuple[StepWork | None, str | None]]:
    """Kind → the work, or None and why it is unknown."""
    if options.offload:
        nothing = None, "not counted: with --offload the host updates, whose memory is not the device's"
        return dict.fromkeys(METHODS, nothing)
    shape, passes = MODELS[options.model], options.accumulation(world.size)
    shards, element = update_shards(options, world.size), COMPUTE[options.precision].itemsize
    parameters = parameters_of(shape, options.seq_len)
    least = least_work(shape, parameters, options.seq_len, element, passes, shards)
    counted, reason = None, None
    try:
        counted = count_work(shape, options, passes, shards)
    except (
        Exception
    ) as error:  # whatever a build of torch or a model cannot do without a device, it can still be trained
        reason = f"not counted: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return {"counted": (counted, reason), "analytic": (least, None)}
