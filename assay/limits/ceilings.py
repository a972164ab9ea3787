"""Measuring a ceiling in all ranks at once, or in the first alone, and recording it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from assay.limits.timing import SHORTEST, Work, take_samples
from assay.ranks import Session
from assay.record import TagValue
from assay.units import format_si

T = TypeVar("T")


@dataclass(frozen=True)
class Ceiling:
    """One ceiling. metric: what is recorded, s per sample. unit: of its rate."""

    metric: str
    unit: str
    work: Work
    tags: Mapping[str, TagValue]

    @property
    def name(self) -> str:
        """For people: `gemm float32 512x512x512`."""
        return " ".join([self.metric.removesuffix("_time"), *(str(value) for value in self.tags.values())])


def from_first(here: Session, item: T) -> T:
    """What rank 0 has, on every rank: ranks that measure different things are not loaded together."""
    return cast(T, here.world.gather(item)[0])


def record(
    here: Session, ceiling: Ceiling, seconds: float, loaded: str, shortest: float = SHORTEST, **tags: TagValue
) -> float:
    """Take and record samples in this rank, whatever the others do; its best rate."""
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
    return ceiling.work.amount / timings.best_call


def measure(
    here: Session, ceiling: Ceiling, seconds: float, *, alone: bool, shortest: float = SHORTEST, **tags: TagValue
) -> float | None:
    """Take and record the ceiling's samples for about `seconds`; the best rate of this rank, None if it waited.

    alone: rank 0 works, the others wait. Else all begin together. shortest: seconds that a sample lasts at least.
    """
    here.world.barrier()
    rate = None
    if not alone or here.world.is_first:
        loaded = "alone" if alone or here.world.size == 1 else "together"
        rate = record(here, ceiling, seconds, loaded, shortest, **tags)
    here.world.barrier()
    return rate


def tell(here: Session, ceiling: Ceiling, rate: float | None, note: str = "") -> None:
    """Rank 0 prints its own best rate."""
    if here.world.is_first and rate is not None:
        print(f"{ceiling.name:<36} {format_si(rate, ceiling.unit)}{note}", flush=True)
