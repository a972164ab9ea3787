"""Why a measurement cannot be made, found out before it is begun and told the same way on every rank."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from assay.collectives.trial import Trial
from assay.errors import AssayError, BadInput
from assay.options import CommsOptions
from assay.ranks import Session
from assay.units import format_si
from assay.world import first_line


def why_not(options: CommsOptions, here: Session, trials: Sequence[Trial]) -> str | None:
    """Why these trials cannot run, tried with one call of each; None if they can.

    All ranks hear of a refusal before any rank calls, or a refusal of one would leave the others waiting for it.
    """
    reason = _first_reason(here, [_tried(trial, lambda trial: trial.prepare(options)) for trial in trials])
    if reason is None:
        reason = _first_reason(here, [_tried(trial, _call_once) for trial in trials])
    for trial in trials:
        trial.release()
    return reason


def _tried(trial: Trial, action: Callable[[Trial], None]) -> str:
    try:
        action(trial)
    except (AssayError, RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        return f"{trial.transport.name}: {first_line(str(error))}"
    return ""


def _call_once(trial: Trial) -> None:
    trial.refill()
    trial.complete()


def _first_reason(here: Session, own: Sequence[str]) -> str | None:
    return here.world.first_said(next((reason for reason in own if reason), ""))


def refuse_beyond_memory(here: Session, need: int, what: str) -> None:
    """Raise BadInput, on every rank, if any host or device lacks memory for what its ranks want at once.

    need: bytes that this rank wants. what: option and measurement, as the sentence begins.
    """
    free = here.device.memory().free
    on_cpu = here.device.type == "cpu"
    wanted, lacking = here.world.broadcast(_most_wanted(here.world.hosts, here.world.collect((need, free)), on_cpu))
    if lacking > 0:
        raise BadInput(
            f"{what} needs {format_si(float(wanted), 'B')} on {'a host' if on_cpu else 'a device'}, "
            f"{format_si(float(lacking), 'B')} more than is free; give less"
        )


def _most_wanted(hosts: Sequence[str], ranks: Sequence[tuple[int, int | None]] | None, shared: bool) -> tuple[int, int]:
    """The most bytes wanted in one place, and the most by which a place's free ones fall short; rank 0 alone has `ranks`.

    shared: the ranks of a host have one memory.
    """
    wanted: dict[str | int, int] = defaultdict(int)
    places = [host if shared else rank for rank, host in enumerate(hosts)]
    for place, (need, _) in zip(places, ranks or (), strict=False):
        wanted[place] += need
    lacking = (wanted[place] - free for place, (_, free) in zip(places, ranks or (), strict=False) if free is not None)
    return max(wanted.values(), default=0), max(lacking, default=0)
