"""Time collectives over sizes.

    torchrun --nproc-per-node 2 comms/bench.py
    torchrun --nproc-per-node 8 comms/bench.py --ops all -b 8 -e 4GiB -f 2
    mpirun -n 4 python comms/bench.py --transport mpi --versus gloo
    torchrun --nproc-per-node 2 comms/bench.py --ops all_reduce --style deepspeed --out records

Each size is timed twice. Back to back: one clock around N calls; its mean gives the bandwidths, as in nccl-tests and
DeepSpeed. Call by call: from the last rank's entry to the last rank's exit; its percentiles tell what one call takes.
Before both, and in some of the timed calls, patterned data are checked, element by element.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

import numpy as np

from assay.bandwidth import COLLECTIVES
from assay.bench_tables import STYLES, Heading, Line, versus_row
from assay.clock import now
from assay.clock_sync import Alignment
from assay.collectives.refusals import refuse_beyond_memory, why_not
from assay.collectives.sweeps import sweeps
from assay.collectives.timing import Job, call_times, one_call, time_batches, time_calls, time_on_device
from assay.collectives.trial import Trial
from assay.errors import BadInput, RunFailed
from assay.estimates import FEWEST_FOR_PERCENTILE, mean_of_batches, median_interval, percentile
from assay.hang_watch import beacon_of
from assay.options import CommsOptions, parse_command_line
from assay.options.comms import ITEM_BYTES
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.transports import Transport, open_transport
from assay.units import format_duration, format_size
from assay.world import MPI_BACKEND

AUDITED = 4  # sizes of a sweep that are timed again in random order
QUICK_LOOK = 1 << 16  # pattern values computed per check of a timed call: it must not eat the time for timing


def measure(job: Job, trials: Sequence[Trial]) -> list[Line]:
    """Check, warm up, time both ways, and record the raw samples of one size over one transport or two."""
    options, here = job.options, job.here
    job.clocks.refresh()
    for trial in trials:
        job.beacon.phase(trial.op, trial.size, "check")
        trial.refill()
        trial.call()
        trial.check()
        job.beacon.phase(trial.op, trial.size, "warm-up")
        start = now()
        for _ in range(options.warmup):
            trial.call()
        here.device.synchronize()
        here.recorder.block("warmup_time", "s", [now() - start], {**trial.tags, "calls": options.warmup})

    guesses = [one_call(trial) for trial in trials]
    for trial, guess in zip(trials, guesses, strict=True):
        calls = max(1, min(options.calls, int(options.budget / options.batches / guess)))
        trial.calls = here.world.agree(calls)
    time_batches(job, trials)
    time_calls(job, trials, sum(guesses))
    for trial in trials:
        time_on_device(job, trial)
    return [keep(job, trial) for trial in trials]


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
    wrong = sum(int(str(count)) for count in world.gather(sum(trial.checks)))
    if COLLECTIVES[trial.op].waits and world.one_clock and "groups" not in trial.tags:
        # Nobody can leave such a call before the last has entered, unless it returned without being done.
        first_exit = -world.largest(-np.asarray(trial.exits))
        wrong += int(np.count_nonzero(first_exit < world.largest(np.asarray(trial.entries))))
    batches = np.asarray(trial.batches)
    slowest = world.largest(batches if trial.takes_part else np.full(len(batches), -np.inf))
    times, how = call_times(job, trial)
    p99 = percentile(times, 99) if len(times) >= FEWEST_FOR_PERCENTILE[99] else None
    per_call = mean_of_batches(slowest, trial.calls)
    heading = heading_of(job, trial, how)
    redop = trial.redop if trial.operation.reduces else "none"
    root = 0 if trial.op in ("broadcast", "reduce", "gather", "scatter") else -1
    size, itemsize = trial.size, ITEM_BYTES[trial.dtype]
    return Line(heading, size, itemsize, trial.dtype, redop, root, wrong, per_call, median_interval(times), p99)


def heading_of(job: Job, trial: Trial, how: str) -> Heading:
    """What all sizes of a sweep share."""
    shown = ("placement", "asynchronous", "coalesced", "graph")
    variant = "".join(f", {key} {trial.tags[key]}" for key in shown if key in trial.tags)
    world = job.here.world
    size, groups = trial.settings[0].world, int(str(trial.tags.get("groups", 1)))
    hosts, name = len(set(world.hosts)), trial.transport.name
    return Heading(trial.op, size, groups, hosts, name, job.here.device.name, how, variant)


def audit_order(job: Job, sweep: Sequence[Sequence[Trial]]) -> int:
    """Time some sizes of a finished sweep again in random order: a figure must not depend on what ran before it.

    Returns the wrong elements over all ranks.
    """
    chosen = [sweep[index] for index in sorted({round(i * (len(sweep) - 1) / (AUDITED - 1)) for i in range(AUDITED)})]
    random.Random(job.options.seed).shuffle(chosen)
    options, here = job.options, job.here
    short = replace(job, options=options.model_copy(update={"budget": options.budget / AUDITED}))
    wrong = 0
    for trials in chosen:
        again = [trial.anew() for trial in trials]
        for trial in again:
            trial.prepare(options)
            trial.refill()
        time_calls(short, again, sum([one_call(trial) for trial in again]))
        for trial in again:
            tags: dict[str, TagValue] = {**trial.tags, "order": "random"}
            here.recorder.block("check_errors", "1", trial.checks, tags)
            if trial.takes_part:
                here.recorder.block("call_entry", "s", trial.entries, tags)
                here.recorder.block("call_exit", "s", trial.exits, tags)
            wrong += sum(int(str(count)) for count in here.world.gather(sum(trial.checks)))
            trial.release()
    return wrong


def bench(job: Job, transports: Sequence[Transport]) -> None:
    """Measure every sweep and print its table.

    Raises RunFailed on rank 0 if any data check failed, BadInput if no sweep can be measured or memory is too small.
    """
    options, here = job.options, job.here
    planned = sweeps(options, here, transports)
    refuse_what_is_too_large(here, planned, len(transports))
    begun, done, total, wrong, refusals = now(), 0, sum(map(len, planned)), 0, []
    for sweep in planned:
        job.beacon.phase(sweep[0][0].op, sweep[0][0].size, "first call")
        refusal = why_not(options, here, sweep[0])
        if refusal:
            keep_refusal(here, sweep[0], refusal)
            refusals.append(refusal)
            total -= len(sweep)
            continue
        for number, trials in enumerate(sweep):
            lines = one_size(job, trials)
            wrong, done = wrong + sum(line.wrong for line in lines), done + 1
            if here.world.is_first:
                show(options, trials, lines, with_header=number == 0)
                # By hand, the rows themselves are the progress; under the runner they go to a log.
                if "ASSAY_RUN" in os.environ:
                    text = f"{lines[0].heading.op} {format_size(lines[0].size)}"
                    print(progress_line(done, total, text), flush=True)
        if options.audit and len(sweep) > 1:
            wrong += audit_order(job, sweep)
    job.clocks.probe()
    if len(refusals) == len(planned):
        raise BadInput(f"nothing can be measured: {refusals[0]}")
    if here.world.is_first:
        kept = f"raw samples in {options.out}" if options.out else "no raw samples kept; give --out DIR to keep them"
        sizes = "1 size" if done == 1 else f"{done} sizes"
        print(f"# {sizes} measured in {format_duration(now() - begun)}; {kept}")
    if wrong and here.world.is_first:
        raise RunFailed(f"{wrong} elements or calls are wrong; trust no figure of this run")


def refuse_what_is_too_large(here: Session, planned: Sequence[Sequence[Sequence[Trial]]], transports: int) -> None:
    """Raise BadInput if the largest buffers of any size do not fit; those of all transports are there at once."""
    first_of_each = (trials[0] for sweep in planned for trials in sweep)
    largest = max(first_of_each, key=attrgetter("bytes_needed"))
    refuse_beyond_memory(here, largest.bytes_needed * transports, f"--max: {largest.op} of {format_size(largest.size)}")


def keep_refusal(here: Session, trials: Sequence[Trial], reason: str) -> None:
    """A sweep that cannot be measured is a record without a value, with the reason."""
    for trial in trials:
        here.recorder.block("batch_time", "s", [None], trial.tags, reason=reason)
    if here.world.is_first:
        print(f"# {trials[0].op}: not measured: {reason}")


def one_size(job: Job, trials: Sequence[Trial]) -> list[Line]:
    """Measure one size, with its buffers there only as long."""
    for trial in trials:
        trial.prepare(job.options)
    lines = measure(job, trials)
    for trial in trials:
        trial.release()
    return lines


def show(options: CommsOptions, trials: Sequence[Trial], lines: Sequence[Line], with_header: bool) -> None:
    """Print one size: a row, or with two transports a table of both and how they compare."""
    header, row = STYLES[options.style]
    for line in lines:
        if with_header or len(lines) > 1:
            print(header(line.heading))
        print(row(line), flush=True)
    if len(lines) > 1:
        names = [line.heading.transport for line in lines]
        calls = [[seconds / trial.calls for seconds in trial.batches] for trial in trials]
        print(versus_row(names, lines[0].size, calls), flush=True)


def named_transports(options: CommsOptions, here: Session) -> list[str]:
    """The transport that is measured, and the one that it is compared with, if any."""
    own = here.world.backend
    if options.versus is None:
        return [own]
    other = MPI_BACKEND if options.versus == "mpi" else options.versus
    if other == own:
        raise BadInput(f"--versus {options.versus}: is what --transport measures already; name another")
    return [own, other]


def run(options: CommsOptions, here: Session, transports: Sequence[Transport]) -> None:
    """The benchmark, under a beacon that tells what hangs if something does."""
    with beacon_of(here.world, options.out, options.hang_limit) as beacon:
        clocks = Alignment(here.world, here.recorder)
        bench(Job(options, here, beacon, clocks, here.device.timeline()), transports)


if __name__ == "__main__":
    arguments = parse_command_line(CommsOptions, __doc__)
    with session(arguments, "comms/bench") as joined:
        names, groups = named_transports(arguments, joined), arguments.groups(joined.world.size)
        run(arguments, joined, [open_transport(name, joined.world, joined.device, groups) for name in names])
