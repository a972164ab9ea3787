"""One training step over the global batch, the proof that ranks train together, and the evaluation afterwards."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from assay.device import Device
from assay.options import TrainingOptions
from assay.training.engines import Engine
from assay.training.engines.protocol import expect
from assay.training.optimizer import learning_rate
from assay.training.task import TOKENS, Batch, Task
from assay.training.weights import is_adapter
from assay.world import World

Mark = Callable[[str], None]
"""Told the name of each phase of a step as it ends: data, forward, backward, optimizer."""


@dataclass(frozen=True)
class Job:
    """All that a step works with."""

    options: TrainingOptions
    engine: Engine
    task: Task
    world: World
    device: Device

    @property
    def passes(self) -> int:
        """Forward passes of a rank in a step."""
        return self.options.accumulation(self.world.size)

    def positions(self, step: int) -> range:
        """The step's global batch in the endless order of sequences: step·G … step·G + G − 1, for any world."""
        return range(step * self.options.global_batch, (step + 1) * self.options.global_batch)

    def share(self, step: int, micro: int) -> range:
        """This rank's sequences of the step's pass number `micro`."""
        first = step * self.options.global_batch
        first += (micro * self.world.size + self.world.rank) * self.options.micro_batch
        return range(first, first + self.options.micro_batch)


class Step(NamedTuple):
    """What a step gave. loss: of the global batch, own: this rank's part of it; norm: of its gradient before clipping
    (scalars); tokens: no padding.
    """

    loss: torch.Tensor
    norm: torch.Tensor
    tokens: int
    own: torch.Tensor


def _unmarked(phase: str) -> None:
    """The measured steps are not taken apart."""


def train_step(job: Job, step: int, mark: Mark = _unmarked) -> Step:
    """One optimizer step over the global batch."""
    own, tokens = accumulate_gradients(job, step, mark=mark)
    norm = job.engine.update(learning_rate(step, job.options))
    loss = own
    if job.world.size > 1:
        loss = own.clone()
        dist.all_reduce(loss)
    mark("optimizer")
    return Step(loss, norm, tokens, own)


def accumulate_gradients(job: Job, step: int, weight: float = 1.0, mark: Mark = _unmarked) -> tuple[torch.Tensor, int]:
    """Forward and backward of this rank's share of the global batch, gradients times `weight`.

    Returns this rank's part of the loss (the parts of all ranks sum to it), and the tokens of the whole global batch.
    """
    sizes = job.task.sizes(job.positions(step))
    total = torch.zeros((), device=job.device.torch_device)
    for micro in range(job.passes):
        batch = to_device(job.task.batch(job.share(step, micro)), job.device)
        mark("data")
        with job.engine.accumulating(last=micro == job.passes - 1):
            sums = job.task.loss_sums(job.engine.module, batch)
            loss = torch.stack([one / sizes[term] for term, one in sums.items()]).sum()
            mark("forward")
            job.engine.backward(loss if weight == 1 else loss * weight)
        total += loss.detach()
        mark("backward")
    return total, sizes[TOKENS]


def to_device(batch: Batch, device: Device) -> Batch:
    """The same tensors on the device."""
    return {name: tensor.to(device.torch_device, non_blocking=True) for name, tensor in batch.items()}


def prove_engine(job: Job) -> str:
    """The engine's proof, in a few words, and that every rank's gradients hold the others' data. No trace is left.

    One backward in which the last rank alone has a loss: where gradients are exchanged, all ranks get some of it. But
    LoRA's second matrices begin at zero, and so do the gradients of its first ones: a rank whose part of the gradients
    are first matrices hears nothing, and with adapters it is enough that another rank does.
    Raises RunFailed if the engine did not engage.
    """
    speaks = job.world.rank == job.world.size - 1
    accumulate_gradients(job, step=0, weight=float(speaks))
    proof = job.engine.assert_engaged()
    if job.options.compile:
        graphs = int(counters["stats"]["unique_graphs"])
        expect(graphs > 0, job.options.engine, "--compile compiled nothing")
        proof += f", {graphs} graphs compiled"
    heard = any(bool(gradient.any()) for gradient in job.engine.own_gradients())
    deaf = int(job.world.total(float(not heard)))
    adapted = any(is_adapter(name) for name, _ in job.engine.module.named_parameters())
    others = int(job.world.total(float(heard and not speaks)))
    expect(
        deaf == 0 or (adapted and others > 0),
        job.options.engine,
        f"{deaf} of {job.world.size} ranks got no gradient of the last one's data",
    )
    job.engine.drop_gradients()
    return proof


def evaluate(job: Job) -> dict[str, float]:
    """Each metric of the task over held-out sequences, --eval-batches global batches or all there are; {} if that is 0."""
    count = min(job.options.eval_batches * job.options.global_batch, job.task.held_out)
    if count == 0:
        return {}
    found: dict[str, tuple[list[float], list[float]]] = {}
    job.engine.module.eval()
    with torch.no_grad():
        for indices, kept in _held_out(job, count):
            batch = to_device(job.task.held_out_batch(indices), job.device)
            for metric, (sums, sizes) in job.task.scores(job.engine.module, batch).items():
                own = found.setdefault(metric, ([], []))
                # Added on the host: not every device has float64.
                own[0].extend(sums[:kept].tolist())
                own[1].extend(sizes[:kept].tolist())
    job.engine.module.train()
    return {metric: _share(job.world, sums, sizes) for metric, (sums, sizes) in found.items()}


def _share(world: World, sums: list[float], sizes: list[float]) -> float:
    parts = world.collect((math.fsum(sums), math.fsum(sizes)))
    # Added exactly, in one place: a reduction's last digit would depend on the number of ranks.
    over = math.fsum(size for _, size in parts or ())
    return world.broadcast(math.fsum(part for part, _ in parts or ()) / over if over else math.nan)


def _held_out(job: Job, count: int) -> Iterator[tuple[Sequence[int], int]]:
    # Every rank must call a sharded model equally often: who has too few sequences repeats one and does not count it.
    size, world = job.options.micro_batch, job.world
    for first in range(0, count, size * world.size):
        mine = range(first + world.rank * size, first + (world.rank + 1) * size)
        yield [min(index, count - 1) for index in mine], max(0, min(size, count - mine.start))
