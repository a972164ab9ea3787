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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from assay.bandwidth import COLLECTIVES
from assay.beacon import Beacon
from assay.bench_tables import STYLES, Heading, Line
from assay.clock import now
from assay.clock_sync import Alignment
from assay.collectives.operations import OPERATIONS
from assay.collectives.refusals import refuse_beyond_memory, why_not
from assay.collectives.trial import Trial, Variant
from assay.device_events import Timeline
from assay.errors import BadInput, RunFailed
from assay.estimates import (
    FEWEST_FOR_PERCENTILE,
    compare_pairs,
    is_settled,
    mean_of_batches,
    median_interval,
    next_look,
    percentile,
)
from assay.hang_watch import beacon_of
from assay.options import CommsOptions, parse_command_line
from assay.options.comms import ITEM_BYTES
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.transports import Transport, open_transport
from assay.units import format_duration, format_size
from assay.world import MPI_BACKEND

FEWEST_CALLS = 6  # timed one by one even when the budget is gone: the fewest that give a 95 % interval
TURN = 10  # calls of one transport before the other has its turn
DEVICE_CALLS = 40  # between events of an accelerator
AUDITED = 4  # sizes of a sweep that are timed again in random order
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


def one_call(trial: Trial) -> float:
    """Seconds of one call: enough to know how many are affordable."""
    trial.barrier()
    start = now()
    trial.complete()
    return max(now() - start, 1e-9)


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


def variants(options: CommsOptions) -> Iterator[Variant]:
    """Every sweep that was asked for."""
    placements = ("in", "out") if options.placement == "both" else (options.placement,)
    for op, dtype, redop, placement in product(options.ops, options.dtype, options.redop, placements):
        if redop != options.redop[0] and not OPERATIONS[op].reduces:
            continue
        if op == "barrier" and (dtype, placement) != (options.dtype[0], placements[0]):
            continue
        yield Variant(op, dtype, redop, placement)


def compared(trials: Sequence[Trial], lines: Sequence[Line]) -> str:
    """The second transport against the first, by the pairs of batches that took turns."""
    first, second = ([seconds / trial.calls for seconds in trial.batches] for trial in trials)
    ratio = compare_pairs(first, second).ratio
    spread = f"[{ratio.low:.3g}, {ratio.high:.3g}]" if ratio.low and ratio.high else "(too few pairs for an interval)"
    names = f"{lines[1].heading.transport} / {lines[0].heading.transport}"
    return (
        f"# {names} at {lines[0].size} B: time x {ratio.value:.3g} {spread}, rank 0, {ratio.samples} pairs of batches"
    )


def trials_of(job: Job, transports: Sequence[Transport], variant: Variant, sizes: Sequence[int]) -> list[list[Trial]]:
    """Every size's trials over each transport, without sizes that whole elements make equal or empty."""
    found: dict[int, list[Trial]] = {}
    for size in sizes:
        trials = [Trial(job.options, job.here, transport, variant, size) for transport in transports]
        if trials[0].size or not size:
            found.setdefault(trials[0].size, trials)
    if not found:
        raise BadInput(f"--max: {variant.op} has no part of a whole element at {format_size(max(sizes))}; give more")
    return list(found.values())


def bench(job: Job, transports: Sequence[Transport]) -> None:
    """Measure every sweep and print its table. Raises RunFailed on rank 0 if any data check failed."""
    options, here, beacon = job.options, job.here, job.beacon
    header, row = STYLES[options.style]
    first, members = here.world.is_first, len(options.groups(here.world.size)[0])
    sweeps = {
        variant: trials_of(
            job, transports, variant, list(options.sizes(variant.op, members, ITEM_BYTES[variant.dtype]))
        )
        for variant in variants(options)
    }
    largest = max(
        ((trial.bytes_needed, trial) for sweep in sweeps.values() for (trial, *_) in sweep), key=itemgetter(0)
    )[1]
    need = largest.bytes_needed * len(transports)  # both transports' buffers are there at once
    refuse_beyond_memory(here, need, f"--max: {largest.op} of {format_size(largest.size)}")
    begun, done, total, wrong, refusals = now(), 0, sum(map(len, sweeps.values())), 0, []
    for sweep in sweeps.values():
        beacon.phase(sweep[0][0].op, sweep[0][0].size, "first call")
        refusal = why_not(options, here, sweep[0])
        if refusal:
            refusals.append(refusal)
            done += len(sweep)
            for trial in sweep[0]:
                here.recorder.block("batch_time", "s", [None], trial.tags, reason=refusal)
            if first:
                print(f"# {sweep[0][0].op}: not measured: {refusal}")
            continue
        for number, trials in enumerate(sweep):
            for trial in trials:
                trial.prepare(options)
            lines = measure(job, trials)
            for trial in trials:
                trial.release()
            wrong, done = wrong + sum(line.wrong for line in lines), done + 1
            if not first:
                continue
            for line in lines:
                if number == 0 or len(lines) > 1:
                    print(header(line.heading))
                print(row(line), flush=True)
            if len(lines) > 1:
                print(compared(trials, lines), flush=True)
            # By hand, the rows themselves are the progress; under the runner they go to a log.
            if "ASSAY_RUN" in os.environ:
                print(progress_line(done, total, f"{lines[0].heading.op} {format_size(lines[0].size)}"), flush=True)
        if options.audit and len(sweep) > 1:
            wrong += audit_order(job, sweep)
    job.clocks.probe()
    if refusals and len(refusals) == len(sweeps):
        raise BadInput(f"nothing can be measured: {refusals[0]}")
    if first:
        kept = f"raw samples in {options.out}" if options.out else "no raw samples kept; give --out DIR to keep them"
        print(f"# {total} measurements in {format_duration(now() - begun)}; {kept}")
    if wrong and first:
        raise RunFailed(f"{wrong} elements or calls are wrong; trust no figure of this run")


def named_transports(options: CommsOptions, here: Session) -> list[str]:
    """The transport that is measured, and the one that it is compared with, if any."""
    own = MPI_BACKEND if options.transport == "mpi" else here.world.backend
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
