"""Why a measurement cannot be made, found out before it is begun and told the same way on every rank."""

from collections.abc import Callable, Sequence

import numpy as np

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
    mine = next((reason for reason in own if reason), "")
    return next((str(reason) for reason in here.world.gather(mine) if reason), None)


def refuse_beyond_memory(here: Session, need: int, what: str) -> None:
    """Raise BadInput, on every rank, if any host or device lacks memory for what its ranks want at once.

    need: bytes that this rank wants. what: option and measurement, as the sentence begins.
    """
    free = here.device.memory().free
    on_cpu = here.device.type == "cpu"
    everyone = [
        (str(host), int(str(wanted))) for host, wanted in zip(here.world.hosts, here.world.gather(need), strict=True)
    ]
    own = here.world.hosts[here.world.rank]
    wanted = sum(one for host, one in everyone if host == own) if on_cpu else need
    lacking = here.world.largest(np.array([wanted - free if free is not None else 0, wanted], dtype=np.float64))
    if lacking[0] > 0:
        raise BadInput(
            f"{what} needs {format_si(float(lacking[1]), 'B')} on {'a host' if on_cpu else 'a device'}, "
            f"{format_si(float(lacking[0]), 'B')} more than is free; give less"
        )
