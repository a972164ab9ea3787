"""What every step of a measurement needs, and what is timed beside the sweep itself."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assay.beacon import Beacon
from assay.clock import now
from assay.clock_sync import Alignment
from assay.collectives.trial import Trial
from assay.device_events import Timeline
from assay.options import CommsOptions
from assay.ranks import Session
from assay.record import TagValue

DEVICE_CALLS = 40  # between events of an accelerator


@dataclass(frozen=True)
class Job:
    """What every step of the measurement needs."""

    options: CommsOptions
    here: Session
    beacon: Beacon
    clocks: Alignment
    timeline: Timeline | None = None


def call_times(job: Job, trial: Trial) -> tuple[NDArray[np.float64], str]:
    """Seconds per call over the ranks that take part, and how they were taken."""
    return job.clocks.call_times(trial.entries, trial.exits, trial.takes_part)


def one_call(trial: Trial) -> float:
    """Seconds of one call: enough to know how many are affordable."""
    trial.barrier()
    start = now()
    trial.complete()
    return max(now() - start, 1e-9)


def time_on_device(job: Job, trial: Trial) -> None:
    """Some calls more between events of the device, where it has them: when it entered and left, on the host's clock.

    Apart from the other calls, because events cost what a small collective does.
    """
    timeline = job.timeline
    if timeline is None:
        return
    job.beacon.phase(trial.op, trial.size, "device events")
    trial.refill()
    timeline.start()
    for _ in range(DEVICE_CALLS):
        job.beacon.cell[0] += 1
        trial.barrier()
        timeline.mark()
        trial.call()
        timeline.mark()
        job.here.device.synchronize()
        job.beacon.cell[0] += 1
    entries, exits, error = timeline.read()
    if trial.takes_part:
        tags: dict[str, TagValue] = {**trial.tags, "error": error}
        job.here.recorder.block("device_entry", "s", entries.tolist(), tags)
        job.here.recorder.block("device_exit", "s", exits.tolist(), tags)
