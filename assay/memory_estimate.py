"""Memory of one rank in training, by part, out of shapes and options: an estimate made before anything is allocated.

Weights, gradients and optimizer states are exact sums over the model's tensors. What passes keep follows from the layers
(activations.py), and what engines hold for a while from how they are written; that is where an estimate can be off. Not
counted: the runtime's own memory (kernels, communication, gaps of the allocator; on a CPU the interpreter and torch).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from assay.activations import kept
from assay.options.training import TrainingOptions
from assay.presets import ModelShape
from assay.trainee import FLOAT, Trainee, elements
from assay.units import format_si

MOMENTS = 2  # AdamW's, of each trained element
BUCKET = 500_000_000  # elements that DeepSpeed reduces at once, unless the model has fewer
MOST_RANKS = 1 << 14  # beyond, more ranks are no advice

Parts = Mapping[str, int]


@dataclass(frozen=True)
class MemoryEstimate:
    """Of one rank, in B. weights, gradients, optimizer: where they all exist. activations: what passes keep.

    moments: what lies there when the loss is differentiated, in the backward of a layer, and from its end on into the
    update, by part.
    host: states that offloading keeps on the host instead. least: without what is held for a while only, and without
    activations that a compiler may fuse away: no run of these options needs less.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    least: int
    moments: Mapping[str, Parts]
    host: int = 0

    @cached_property
    def moment(self) -> str:
        """When the most is needed: loss, backward or update."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> Parts:
        """What lies there at that moment; parts of nothing are left out."""
        return {part: size for part, size in self.moments[self.moment].items() if size}

    @property
    def peak(self) -> int:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class _Placement:
    """What an engine keeps on a rank, in B. early: gradients that are there before the backward. head: those of it that
    come first. waiting: buckets beside them. ends, gathered: weights put together for the loss, and for a layer's
    backward. buckets: of the exchange while layers are in backward.
    last: of the exchange and the update, when all gradients are there.
    """

    weights: int
    gradients: int
    optimizer: int
    early: int
    head: int = 0
    waiting: int = 0
    ends: int = 0
    gathered: int = 0
    buckets: int = 0
    last: int = 0
    host: int = 0


def estimate_memory(options: TrainingOptions, world: int) -> MemoryEstimate:
    """Of the rank that holds the most, from the second step on, when the optimizer's states exist.

    Raises KeyError for a model that is not among the presets.
    """
    trainee = Trainee(options)
    layers, passes = trainee.model.layers, max(1, options.accumulation(world))
    if options.engine == "fsdp":
        on = _sharded(trainee, options.shard_ranks or world, passes)
    elif options.engine.startswith("zero"):
        on = _zero(trainee, world, passes)
    else:
        on = _whole(trainee, world, passes)
    of = kept(trainee.forward())
    if options.checkpointing:
        # One layer's activations are made again when its backward comes, its weights cast again too.
        stored, again, copies = layers * of.entry + of.ends, of.layer, trainee.cast_weights(1)
    else:
        stored, again, copies = layers * of.layer + of.ends, 0, trainee.cast_weights(layers)
    always = {"weights": on.weights, "optimizer states": on.optimizer}
    passing = {**always, "compute copies": copies, "activations": stored}
    moments = {
        "loss": {
            **passing,
            "gradients": on.early,
            "exchange": on.waiting,
            "gathered weights": on.ends,
            "loss": of.loss,
        },
        "backward": {
            **passing,
            "gradients": max(on.early, on.head),
            "gathered weights": on.gathered,
            "exchange": on.waiting + on.buckets,
            "working memory": of.working + again + trainee.dequantised,
        },
        "update": {**always, "gradients": on.gradients, "exchange": on.last, "working memory": _table(trainee, on)},
    }
    least = on.weights + on.optimizer + max(on.gradients, 0 if options.compile else stored)
    return MemoryEstimate(trainee.parameters, on.weights, on.gradients, on.optimizer, stored, least, moments, on.host)


def _table(trainee: Trainee, on: _Placement) -> int:
    """The embedding's gradient comes last of all. If the head's is there, the two and their sum are there at once."""
    if trainee.adapted:
        return 0
    shape = trainee.shape
    tied = shape.tied if isinstance(shape, ModelShape) else True
    return FLOAT * shape.vocab * shape.hidden * (2 if tied else bool(on.early))


def _whole(trainee: Trainee, world: int, passes: int) -> _Placement:
    """none, ddp, accelerate: everything on each rank. DDP's gradients lie in its buckets, which are always there; those
    of all passes but the last are added up beside them.
    """
    gradients = FLOAT * trainee.learning.elements()
    buckets = world > 1 and trainee.options.engine != "none"
    return _Placement(
        weights=gradients + trainee.frozen_bytes(),
        gradients=gradients,
        optimizer=MOMENTS * gradients,
        early=gradients if passes > 1 or buckets else 0,
        head=FLOAT * elements(trainee.learning.ends),
        waiting=gradients if passes > 1 and buckets else 0,
    )


def _sharded(trainee: Trainee, shards: int, passes: int) -> _Placement:
    """fsdp: rows of everything. What lies outside the layers stays gathered from forward to backward; of the layers this
    one and the next are. Gradients are as the products give them, then float32 in the reduction, in every pass; those
    outside of the layers wait for the end of the pass, and the rows of earlier passes are there from the start.
    """
    learning, model, element = trainee.learning, trainee.model, trainee.element
    gradients = FLOAT * learning.elements(shards)
    gathered, trained = element * elements(model.ends), elements(learning.ends)
    given = element * trained
    return _Placement(
        weights=gradients + trainee.frozen_bytes(shards),
        gradients=gradients,
        optimizer=MOMENTS * gradients,
        early=gradients if passes > 1 else 0,
        ends=gathered,
        gathered=gathered + 2 * element * elements(model.layer),
        buckets=(element + FLOAT) * elements(learning.layer) + given,
        last=gathered + given + FLOAT * trained,
    )


def _zero(trainee: Trainee, world: int, passes: int) -> _Placement:
    """zero1, zero2, zero3: masters and moments in parts; gradients too from 2 on, weights too in 3.

    Stages 1 and 2 keep a copy of the weights to update even in float32. The update takes gradients in one float32 piece.
    """
    stage, element, learning, model = int(trainee.options.engine[-1]), trainee.element, trainee.learning, trainee.model
    part = -(-learning.elements() // world)
    masters = FLOAT * part if stage < 3 or element != FLOAT else 0
    states, offload = masters + FLOAT * MOMENTS * part, trainee.options.offload
    gradients = element * (learning.elements() if stage == 1 else part)
    sharing = world if stage == 3 else 1
    weights = element * -(-trainee.parameters // sharing)
    if trainee.int8:
        weights = element * learning.elements(sharing) + trainee.frozen_bytes(sharing)
    return _Placement(
        weights=weights,
        gradients=gradients,
        optimizer=0 if offload else states,
        early=gradients if passes > 1 or stage == 3 else 0,
        ends=element * elements(model.ends) if stage == 3 else 0,
        gathered=element * (elements(model.ends) + 2 * elements(model.layer)) if stage == 3 else 0,
        buckets=element * min(BUCKET, trainee.parameters),
        last=0 if offload else FLOAT * part,
        host=states if offload else 0,
    )


@dataclass(frozen=True)
class Change:
    """Something that can be changed, in words, and what a rank needs then."""

    words: str
    estimate: MemoryEstimate


def changes(options: TrainingOptions, world: int, available: int | None) -> Iterator[Change]:
    """What lowers the peak, one change at a time, then all of them together; what does not lower it is left out.

    available: B of a rank; the number of ranks is raised until it is enough. None: it is doubled.
    """
    now = estimate_memory(options, world).peak
    tried: list[tuple[str, dict[str, object]]] = [("micro_batch 1", {"micro_batch": 1})]
    if not options.checkpointing:
        tried.append(("checkpointing", {"checkpointing": True}))
    if options.engine.startswith("zero") and not options.offload:
        tried.append(("offload", {"offload": True}))
    if world > 1:
        others = [name for name in ("fsdp", "zero3") if options.engine not in (name, "zero3")]
        tried += [(f"engine {name}", {"engine": name, "offload": False, "shard_ranks": 0}) for name in others]
    together: dict[str, object] = {}
    lowest = now
    helping = 0
    for words, update in tried:
        estimate = estimate_memory(options.model_copy(update=update), world)
        if estimate.peak >= now:
            continue
        yield Change(words, estimate)
        if "engine" not in update:
            together |= update
            helping += 1
        elif estimate.peak < lowest:  # of two engines the better one
            together |= update
            helping, lowest = helping + (lowest == now), estimate.peak
    best = options.model_copy(update=together)
    if helping > 1:
        engine = f" on engine {best.engine}" if best.engine != options.engine else ""
        yield Change(f"all of these{engine}", estimate_memory(best, world))
    yield from _more_ranks(best, world, available)


def _more_ranks(options: TrainingOptions, world: int, available: int | None) -> Iterator[Change]:
    """Ranks at which it fits, everything else changed already that helps; nothing if no number is enough."""
    if world == 1 and options.engine not in ("fsdp", "zero3"):
        options = options.model_copy(update={"engine": "fsdp", "shard_ranks": 0, "offload": False})
    now, ranks = estimate_memory(options, world).peak, 2 * world
    while (
        available is not None and ranks < MOST_RANKS and estimate_memory(_over(options, ranks), ranks).peak > available
    ):
        ranks *= 2
    estimate = estimate_memory(_over(options, ranks), ranks)
    if estimate.peak < now and (available is None or estimate.peak <= available < now):
        yield Change(f"and {ranks} ranks on engine {options.engine}", estimate)


def _over(options: TrainingOptions, ranks: int) -> TrainingOptions:
    """The same on so many ranks, with one pass for each at least."""
    batch = max(options.global_batch, options.micro_batch * ranks)
    return options.model_copy(update={"global_batch": batch, "shard_ranks": 0})


def parts_in_words(estimate: MemoryEstimate) -> str:
    """`weights 13.5 GB, optimizer states 27.0 GB, …`, the largest first."""
    ordered = sorted(estimate.parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {format_si(size, 'B')}" for part, size in ordered)


def changes_in_words(options: TrainingOptions, world: int, available: int | None) -> str:
    """`what helps: checkpointing (40.0 GB), engine fsdp (20.0 GB, fits)`, or what there is to do where nothing does."""
    found = [
        f"{change.words} ({format_si(change.estimate.peak, 'B')}"
        + (", fits)" if available is not None and change.estimate.peak <= available else ")")
        for change in changes(options, world, available)
    ]
    if not found:
        return "no option makes it less; take a smaller model or more memory"
    return f"what helps: {', '.join(found)}"


def out_of_memory_sentence(options: TrainingOptions, world: int, device_total: int | None) -> str:
    """What to say when a rank has run out of memory: what it needs by the estimate, and what would lower that.

    device_total: B of the device, None where its driver does not tell.
    """
    try:
        estimate = estimate_memory(options, world)
    except KeyError:
        return "out of memory; use a smaller --micro-batch, --checkpointing, or --engine fsdp on more ranks"
    of = f" of {format_si(device_total, 'B')}" if device_total is not None else ""
    return (
        f"out of memory: by the estimate a rank needs {format_si(estimate.peak, 'B')}{of} "
        f"({parts_in_words(estimate)}), and the runtime its own share; "
        f"{changes_in_words(options, world, device_total)}"
    )
