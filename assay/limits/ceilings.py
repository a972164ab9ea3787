"""Measuring a ceiling in all ranks at once, or in the first alone, and recording it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from assay.estimates import best_window
from assay.limits.products import KINDS, Kind, Shape, Unsupported, fastest, product, prove, refusals, search, shapes_for
from assay.limits.timing import SHORTEST, Work, take_samples
from assay.ranks import Session
from assay.record import TagValue
from assay.units import format_si, format_size

T = TypeVar("T")

# Turns of every ceiling: the fewest that can carry an interval.
TURNS = 6
SEARCH = 0.03  # of the seconds that a ceiling is given, for each shape that is tried


@dataclass(frozen=True)
class Ceiling:
    """One ceiling. metric: what is recorded, s per sample. unit: of its rate."""

    metric: str
    unit: str
    work: Work
    tags: Mapping[str, TagValue]

    @property
    def name(self) -> str:
        """For people: `gemm float32 512x512x512`, `copy 64MiB`."""
        words = [format_size(int(value or 0)) if key == "bytes" else str(value) for key, value in self.tags.items()]
        return " ".join([self.metric.removesuffix("_time"), *words])


def from_first(here: Session, item: T) -> T:
    """What rank 0 has, on every rank: ranks that measure different things are not loaded together."""
    return here.world.broadcast(item)


def record(
    here: Session, ceiling: Ceiling, seconds: float, loaded: str, shortest: float = SHORTEST, **tags: TagValue
) -> float:
    """Take and record samples in this rank, whatever the others do; its rate in the best part of that time."""
    timings = take_samples(here.device, seconds, ceiling.work.call, shortest=shortest)
    told: dict[str, TagValue] = {
        **ceiling.tags,
        **tags,
        "work": ceiling.work.amount * timings.calls,
        "calls": timings.calls,
        "loaded": loaded,
        "ranks": here.world.size,
        "begun": timings.begun,
    }
    here.recorder.block(ceiling.metric, "s", timings.times, told)
    return best_window([(timings.begun, timings.times, ceiling.work.amount * timings.calls)])[0]


def measure(
    here: Session, ceiling: Ceiling, seconds: float, *, alone: bool, shortest: float = SHORTEST, **tags: TagValue
) -> float | None:
    """Take and record the ceiling's samples for about `seconds`; this rank's rate in the best part of it, None
    if it waited.

    alone: rank 0 works, the others wait. Else all begin together. shortest: seconds that a sample lasts at least.
    """
    here.world.barrier()
    rate = None
    if not alone or here.world.is_first:
        loaded = "alone" if alone or here.world.size == 1 else "together"
        rate = record(here, ceiling, seconds, loaded, shortest, **tags)
    here.world.barrier()
    return rate


@dataclass(frozen=True)
class Fastest:
    """An element type in the shape that rank 0 found fastest. rate: operations per second in the search."""

    kind: Kind
    shape: Shape
    rate: float

    def ceiling(self, here: Session, metric: str) -> Ceiling:
        """Made when it is needed and not kept: the operands of all types together may not fit."""
        tags: dict[str, TagValue] = {"dtype": self.kind.name, "shape": str(self.shape)}
        return Ceiling(metric, self.kind.unit, product(here.device, self.kind, self.shape), tags)


def fastest_products(
    here: Session, dtypes: Iterable[str], seconds: float, shapes: Sequence[Shape] = ()
) -> list[Fastest]:
    """Every element type that this device has, proven; a record with the reason for every other.

    Rank 0 searches for all, `seconds` a shape, while nothing else runs. shapes: those tried, without them the usual ones.
    """
    found: list[Fastest] = []
    for name in dtypes:
        kind = KINDS[name]
        result: tuple[Shape, float] | str = ""
        if here.world.is_first:
            result = _proven(here, kind, shapes or shapes_for(here.device), seconds)
        result = from_first(here, result)
        if not isinstance(result, str):
            found.append(Fastest(kind, *result))
        elif here.world.is_first:
            here.recorder.block("gemm_time", "s", [None], {"dtype": name}, reason=result)
            tell_unknown(here, f"gemm {name}", result)
    return found


def _proven(here: Session, kind: Kind, shapes: Sequence[Shape], seconds: float) -> tuple[Shape, float] | str:
    """The fastest shape and its rate, or the reason why there is none. Every shape tried is recorded."""
    try:
        prove(kind, here.device)
        tried = search(here.device, kind, shapes, seconds)
    except Unsupported as error:
        return str(error)
    for shape, timings in tried:
        tags: dict[str, TagValue] = {"dtype": kind.name, "shape": str(shape), "calls": timings.calls}
        here.recorder.block("search_time", "s", timings.times, {**tags, "work": shape.operations * timings.calls})
    return fastest(tried)


def prepared(here: Session, make: Callable[[], Work]) -> Work | str:
    """What `make` gives in this rank, or the reason for which it was refused in any: all go on, or none."""
    made: Work | None = None
    reason = ""
    try:
        with refusals(here.device):
            made = make()
    except Unsupported as error:
        reason = str(error)
    told = here.world.first_said(reason)
    return made if told is None and made is not None else told or reason


def tell(here: Session, name: str, unit: str, rates: Sequence[float | None], note: str = "") -> None:
    """Rank 0 prints its median turn with the lowest and the highest; the report does the same over all ranks."""
    known = [rate for rate in rates if rate is not None]
    if here.world.is_first and known:
        middle = f"{name:<36} {format_si(median(known), unit)}"
        ends = f" [{format_si(min(known), unit)}, {format_si(max(known), unit)}]" if len(known) > 1 else ""
        print(f"{middle}{ends}{note}", flush=True)


def tell_unknown(here: Session, name: str, reason: str) -> None:
    """Rank 0 prints why there is no figure."""
    if here.world.is_first:
        print(f"{name:<36} NA: {reason}", flush=True)
