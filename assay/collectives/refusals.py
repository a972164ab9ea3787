"""Why a measurement cannot be made, found out before it is begun and told the same way on every rank."""

from collections.abc import Sequence

import numpy as np

from assay.collectives.trial import Trial
from assay.errors import AssayError, BadInput
from assay.options import CommsOptions
from assay.ranks import Session
from assay.units import format_si
from assay.world import first_line


def why_not(options: CommsOptions, here: Session, trials: Sequence[Trial]) -> str | None:
    """Why these trials cannot run, tried with one call of each; None if they can."""
    reason = ""
    for trial in trials:
        try:
            trial.prepare(options)
            trial.refill()
            trial.complete()
        except (AssayError, RuntimeError, ValueError, TypeError) as error:
            reason = reason or f"{trial.transport.name}: {first_line(str(error))}"
    reasons = [str(one) for one in here.world.gather(reason) if one]
    for trial in trials:
        trial.release()
    return reasons[0] if reasons else None


def refuse_beyond_memory(here: Session, need: int, what: str) -> None:
    """Raise BadInput, on every rank, if any rank lacks memory for the `need` bytes that each wants at once.

    what: option and measurement, as the sentence begins.
    """
    free = here.device.memory().free
    sharers = here.world.local_size if here.device.type == "cpu" else 1
    lacking = here.world.largest(np.array([need * sharers - free if free is not None else 0], dtype=np.float64))[0]
    if lacking > 0:
        where = f"each of {sharers} ranks of a host" if sharers > 1 else "each device"
        raise BadInput(
            f"{what} needs {format_si(float(need), 'B')} on {where}, {format_si(float(lacking), 'B')} more than is free; "
            "give less"
        )
