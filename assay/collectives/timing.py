"""How the calls of a trial are timed: back to back, one by one, and between events of the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from assay.beacon import Beacon
from assay.clock import now
from assay.clock_sync import Alignment
from assay.collectives.trial import Trial
from assay.device_events import Timeline
from assay.estimates import is_settled, next_look
from assay.options import CommsOptions
from assay.ranks import Session
from assay.record import TagValue

FEWEST_CALLS = 6  # timed one by one even when the budget is gone: the fewest that give a 95 % interval
TURN = 10  # calls of one transport before the other has its turn
DEVICE_CALLS = 40  # between events of an accelerator
QUICK_LOOK = 1 << 16  # pattern values computed per check of a timed call: it must not eat the time for timing


@dataclass(frozen=True)
class Job:
    """What every step of the measurement needs."""

    options: CommsOptions
    here: Session
    beacon: Beacon
    clocks: Alignment
    timeline: Timeline | None = None


def time_batches(job: Job, trials: Sequence[Trial]) -> None:
    """Batches of back-to-back calls, one clock around each, by turns, until the times are known well or time is up."""
    options, here, cell = job.options, job.here, job.beacon.cell
    begun = now()
    job.beacon.phase(trials[0].op, trials[0].size, "back to back")
    while True:
        for trial in trials:
            cell[0] += 1  # a batch is entered
            call, count = trial.call, range(trial.calls)
            trial.refill()  # sums in place grow with every call: each batch begins with the same data
            trial.barrier()
            # ---- timed region
            start = now()
            for _ in count:
                call()
            here.device.synchronize()
            end = now()
            # ----
            cell[0] += 1  # and left
            trial.batches.append(end - start)
        done = len(trials[0].batches)
        enough = looks(done) and all(is_settled(trial.batches, options.target) for trial in trials)
        spent = done >= options.max_calls or now() - begun >= options.budget * len(trials)
        if done >= options.batches and here.world.agree(enough or spent):
            return


def time_calls(job: Job, trials: Sequence[Trial], guess: float) -> None:
    """Entry and exit of single calls, each after a barrier, by turns, until the times are known well or time is up.

    guess: s that one call of every trial takes together.
    """
    options, here = job.options, job.here
    begun, budget = now(), options.budget * len(trials)
    job.beacon.phase(trials[0].op, trials[0].size, "call by call")
    while True:
        done = len(trials[0].entries)
        affordable = int((budget - (now() - begun)) / guess)
        most = min(next_look(done), options.max_calls) - done
        wanted = here.world.agree(min(most, max(affordable, FEWEST_CALLS - done, 1)))
        turn = wanted if len(trials) == 1 else TURN
        for first in range(0, wanted, turn):
            for trial in trials:
                time_turn(job, trial, min(turn, wanted - first), checked=first == 0)
        done += wanted
        enough = looks(done) and all(is_settled(call_times(job, trial)[0], options.target) for trial in trials)
        if here.world.agree(enough or done >= options.max_calls or now() - begun >= budget):
            return


def time_turn(job: Job, trial: Trial, count: int, checked: bool) -> None:
    """So many single calls. checked: the first one's data are looked at, as soon as it says that it is done."""
    barrier, complete, cell = trial.barrier, trial.complete, job.beacon.cell
    trial.refill()
    for number in range(count):
        cell[0] += 1  # the iteration is entered: a rank that is late or stopped shows as one that never came
        barrier()
        # ---- timed region
        enter = now()
        complete()
        leave = now()
        # ----
        cell[0] += 1  # and left
        trial.entries.append(enter)
        trial.exits.append(leave)
        if checked and number == 0:
            trial.check(QUICK_LOOK)


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


def looks(samples: int) -> bool:
    """Whether the stopping rule looks after this many samples."""
    return next_look(samples - 1) == samples


def call_times(job: Job, trial: Trial) -> tuple[NDArray[np.float64], str]:
    """Seconds per call over the ranks that take part, and how they were taken."""
    return job.clocks.call_times(trial.entries, trial.exits, trial.takes_part)


def one_call(trial: Trial) -> float:
    """Seconds of one call: enough to know how many are affordable."""
    trial.barrier()
    start = now()
    trial.complete()
    return max(now() - start, 1e-9)
