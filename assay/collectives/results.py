"""What is kept of a trial: its raw samples as records, and the line that is printed of them."""

import numpy as np

from assay.bandwidth import COLLECTIVES
from assay.bench_tables import Heading, Line
from assay.collectives.job import Job, call_times
from assay.collectives.trial import Trial
from assay.estimates import FEWEST_FOR_PERCENTILE, mean_of_batches, median_interval, percentile
from assay.options.comms import ITEM_BYTES


def keep(job: Job, trial: Trial) -> Line:
    """Record a trial's raw samples, and derive what is printed of them."""
    recorder, world = job.here.recorder, job.here.world
    job.beacon.phase(trial.op, trial.size, "results")
    seen = {"looked_at": trial.looked_at, "of": trial.elements}
    recorder.block("check_errors", "1", trial.checks, {**trial.tags, **seen})
    if trial.late:
        recorder.block("late_elements", "1", [trial.late], trial.tags)
    if trial.takes_part:
        recorder.block("batch_time", "s", trial.batches, {**trial.tags, "calls": trial.calls})
        recorder.block("call_entry", "s", trial.entries, trial.tags)
        recorder.block("call_exit", "s", trial.exits, trial.tags)
    wrong = int(world.total(sum(trial.checks)))
    if COLLECTIVES[trial.op].waits and world.one_clock and "groups" not in trial.tags:
        # Nobody can leave such a call before the last has entered, unless it returned without being done.
        first_exit = -world.largest(-np.asarray(trial.exits))
        wrong += int(np.count_nonzero(first_exit < world.largest(np.asarray(trial.entries))))
    batches = np.asarray(trial.batches)
    slowest = world.largest(batches if trial.takes_part else np.full(len(batches), -np.inf))
    times, how = call_times(job, trial)
    p99 = percentile(times, 99) if len(times) >= FEWEST_FOR_PERCENTILE[99] else None
    per_call = mean_of_batches(slowest, trial.calls)
    heading = _heading_of(job, trial, how)
    redop = trial.redop if trial.operation.reduces else "none"
    root = 0 if trial.op in ("broadcast", "reduce", "gather", "scatter") else -1
    size, itemsize = trial.size, ITEM_BYTES[trial.dtype]
    return Line(heading, size, itemsize, trial.dtype, redop, root, wrong, per_call, median_interval(times), p99)


def _heading_of(job: Job, trial: Trial, how: str) -> Heading:
    """What all sizes of a sweep share."""
    shown = ("placement", "asynchronous", "coalesced", "means", "graph", "matrix")
    variant = "".join(f", {key} {trial.tags[key]}" for key in shown if key in trial.tags)
    world = job.here.world
    size, groups = trial.settings[0].world, int(str(trial.tags.get("groups", 1)))
    hosts, name = len(set(world.hosts)), trial.transport.name
    return Heading(trial.op, size, groups, hosts, name, job.here.device.name, how, variant)
