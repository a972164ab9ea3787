"""Seconds of a training step out of its work and of the machine's measured ceilings: a prediction, never a measurement.

    low  = max(products + update, communication)
    high = products + update + traffic + communication

products: FLOPs that are carried out (recomputation too) / GEMM rate. update: 8 accesses of 4 B to each element that a rank
updates (the norm reads the gradient; AdamW reads weight, gradient and two moments, and writes all but the gradient) / copy
rate. traffic: what passes keep, 4 times (written, read in forward and in backward, its gradient written) / copy rate.
communication: Σ calls · α + S · f / B over the engine's collectives, the α–β model of latency_model.py with the factors f
of bandwidth.py. low is a machine that hides everything behind everything, high one that hides nothing. Not in either: the
input, the time that the host takes to start kernels, and waiting for ranks that are late.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from assay.activations import kept
from assay.bandwidth import COLLECTIVES
from assay.memory_estimate import BUCKET
from assay.options.training import TrainingOptions
from assay.trainee import FLOAT, Trainee

DDP_BUCKET = 25 << 20  # B of gradients that torch's DDP exchanges at once, unless told otherwise
_UPDATE = 8  # accesses to each updated element
_TRAFFIC = 4  # accesses to what a pass keeps


@dataclass(frozen=True)
class Exchange:
    """A collective of the engine in one step: `calls` calls among `ranks` ranks, S = `size` B in all of them together.

    size: as bandwidth.py defines S (all_gather and reduce_scatter: the whole).
    """

    op: str
    ranks: int
    size: int
    calls: int


@dataclass(frozen=True)
class StepLoad:
    """A rank's work in one step. flops: model FLOPs; executed: those that are carried out; update, traffic: B."""

    flops: float
    executed: float
    update: int
    traffic: int
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Line:
    """A collective's α in s and bandwidth B in B/s, among so many ranks."""

    alpha: float
    bandwidth: float

    def seconds(self, exchange: Exchange) -> float:
        """calls · α + S · f / B."""
        factor = COLLECTIVES[exchange.op].bus(exchange.ranks)
        return exchange.calls * self.alpha + exchange.size * factor / self.bandwidth


@dataclass(frozen=True)
class StepCeilings:
    """What bounds a rank. products: FLOP/s in the options' element type; copies: B/s read plus written.

    lines: (op, ranks) → its model.
    """

    products: float | None
    copies: float | None
    lines: Mapping[tuple[str, int], Line]


@dataclass(frozen=True)
class StepPrediction:
    """Seconds. parts: products, update, traffic, communication."""

    low: float
    high: float
    parts: Mapping[str, float]

    @property
    def method(self) -> str:
        """How it comes about, for readers."""
        return (
            "predicted, not measured: from all of it hidden (the larger of computation and communication) to none of it"
        )


def step_load(options: TrainingOptions, world: int, flops_per_token: float) -> StepLoad:
    """The work of one rank. flops_per_token: model FLOPs, forward and backward.

    Raises KeyError for a model that is not among the presets.
    """
    trainee = Trainee(options)
    passes = max(1, options.accumulation(world))
    of = trainee.forward()
    flops = flops_per_token * of.tokens * passes
    # Recomputation is one more forward: a third of forward and backward, half of it where weights are frozen.
    again = (1 / 2 if trainee.adapted else 1 / 3) if options.checkpointing else 0
    held = kept(of)
    shards = (options.shard_ranks or world) if options.engine == "fsdp" else 1
    shards = world if options.engine.startswith("zero") else shards
    return StepLoad(
        flops,
        flops * (1 + again),
        _UPDATE * FLOAT * trainee.learning.elements(shards),
        _TRAFFIC * passes * (trainee.model.layers * held.layer + held.ends + held.loss),
        tuple(exchanges(trainee, world, passes)),
    )


def exchanges(trainee: Trainee, world: int, passes: int) -> list[Exchange]:
    """The collectives of one step. Of one rank: none.

    ddp, accelerate: gradients in buckets. fsdp: weights are gathered for each forward and for each backward (but those
    outside of the layers once), gradients reduced in each pass, and among the copies of HSDP once more. zero: gradients
    are reduced in each pass (1: in the last) and weights gathered after the update; zero3 gathers them as fsdp does.
    DeepSpeed's reductions to the owners of partitions count as reduce_scatter.
    """
    options, learning, model, element = trainee.options, trainee.learning, trainee.model, trainee.element
    gradients, layers = FLOAT * learning.elements(), model.layers
    if world == 1 or options.engine == "none":
        return []
    if options.engine in ("ddp", "accelerate"):
        return [Exchange("all_reduce", world, gradients, 1 + math.ceil(gradients / DDP_BUCKET))]
    sharing = (options.shard_ranks or world) if options.engine == "fsdp" else world
    whole = element * trainee.parameters
    again = whole - element * sum(rows * width for rows, width in model.ends)
    gathers = Exchange("all_gather", sharing, passes * (whole + again), passes * (2 * layers + 1))
    if options.engine == "fsdp":
        found = [gathers, Exchange("reduce_scatter", sharing, passes * gradients, passes * (layers + 1))]
        if sharing < world:
            shards = FLOAT * learning.elements(sharing)
            found.append(Exchange("all_reduce", world // sharing, passes * shards, passes * (layers + 1)))
        return found
    reduced = element * learning.elements()
    if options.engine == "zero3":
        return [gathers, Exchange("reduce_scatter", world, passes * reduced, passes * (layers + 1))]
    times, buckets = passes if options.engine == "zero2" else 1, math.ceil(learning.elements() / BUCKET)
    return [
        Exchange("reduce_scatter", world, times * reduced, times * buckets),
        Exchange("all_gather", world, reduced, buckets),
    ]


def predict_step(load: StepLoad, ceilings: StepCeilings) -> StepPrediction | str:
    """The prediction, or what was not measured that it needs."""
    if ceilings.products is None or ceilings.copies is None:
        lacking = "GEMM rate in this precision" if ceilings.products is None else "copy rate"
        return f"no {lacking} was measured with as many ranks loaded"
    products, update = load.executed / ceilings.products, load.update / ceilings.copies
    traffic = load.traffic / ceilings.copies
    communication = 0.0
    for exchange in load.exchanges:
        line = ceilings.lines.get((exchange.op, exchange.ranks))
        if line is None:
            return (
                f"no {exchange.op} among {exchange.ranks} ranks was measured, whose share is not known; "
                f"the computation alone would take {products + update:.3g} s to {products + update + traffic:.3g} s"
            )
        communication += line.seconds(exchange)
    parts = {"products": products, "update": update, "traffic": traffic, "communication": communication}
    return StepPrediction(max(products + update, communication), sum(parts.values()), parts)
