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

from assay.bench_tables import STYLES, Line, versus_row
from assay.clock import now
from assay.clock_sync import Alignment
from assay.collectives.job import Job, call_times, one_call, time_on_device
from assay.collectives.refusals import refuse_beyond_memory, why_not
from assay.collectives.results import keep
from assay.collectives.sweeps import sweeps
from assay.collectives.trial import Trial
from assay.errors import BadInput, RunFailed
from assay.estimates import is_settled, next_look
from assay.hang_watch import beacon_of
from assay.options import CommsOptions, parse_command_line
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.transports import Transport, open_transport
from assay.units import format_duration, format_size
from assay.world import MPI_BACKEND

FEWEST_CALLS = 6  # timed one by one even when the budget is gone: the fewest that give a 95 % interval
TURN = 10  # calls of one transport before the other has its turn
QUICK_LOOK = 1 << 16  # pattern values computed per check of a timed call: it must not eat the time for timing
AUDITED = 4  # sizes of a sweep that are timed again in random order


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


def looks(samples: int) -> bool:
    """Whether the stopping rule looks after this many samples."""
    return next_look(samples - 1) == samples


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
            wrong += int(here.world.total(sum(trial.checks)))
            trial.release()
    return wrong


def bench(job: Job, transports: Sequence[Transport]) -> None:
    """Measure every sweep and print its table.

    Raises RunFailed on rank 0 if any data check failed, BadInput if no sweep can be measured or memory is too small.
    """
    options, here = job.options, job.here
    planned = sweeps(options, here, transports)
    refuse_what_is_too_large(here, planned, len(transports), "max" if options.size is None else "size")
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


def refuse_what_is_too_large(
    here: Session, planned: Sequence[Sequence[Sequence[Trial]]], transports: int, flag: str
) -> None:
    """Raise BadInput, which names the option `flag`, if the largest buffers of any size do not fit; those of all transports are there at once."""
    first_of_each = (trials[0] for sweep in planned for trials in sweep)
    largest = max(first_of_each, key=attrgetter("bytes_needed"))
    what = f"--{flag}: {largest.op} of {format_size(largest.size)}"
    refuse_beyond_memory(here, largest.bytes_needed * transports, what)


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
