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
from itertools import product

import numpy as np
from numpy.typing import NDArray

from assay.bench_tables import STYLES, Heading, Line
from assay.clock import now
from assay.collectives.operations import OPERATIONS
from assay.collectives.trial import Trial, Variant
from assay.errors import AssayError, BadInput, RunFailed
from assay.estimates import (
    FEWEST_FOR_PERCENTILE,
    compare_pairs,
    is_settled,
    mean_of_batches,
    median_interval,
    next_look,
    percentile,
)
from assay.options import CommsOptions, parse_command_line
from assay.options.comms import ITEM_BYTES
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.transports import Transport, open_transport
from assay.units import format_duration, format_size
from assay.world import MPI_BACKEND, first_line

FEWEST_CALLS = 6  # timed one by one even when the budget is gone: the fewest that give a 95 % interval
TURN = 10  # calls of one transport before the other has its turn
AUDITED = 4  # sizes of a sweep that are timed again in random order
QUICK_LOOK = 1 << 16  # pattern values computed per check of a timed call: it must not eat the time for timing


def time_batches(options: CommsOptions, here: Session, trials: Sequence[Trial]) -> None:
    """Batches of back-to-back calls, one clock around each, by turns, until the times are known well or time is up."""
    begun = now()
    while True:
        for trial in trials:
            call, count = trial.call, range(trial.calls)
            trial.refill()  # a sum in place grows with every call; fresh data keep it finite
            trial.barrier()
            # ---- timed region
            start = now()
            for _ in count:
                call()
            here.device.synchronize()
            end = now()
            # ----
            trial.batches.append(end - start)
        done = len(trials[0].batches)
        enough = looks(done) and all(is_settled(trial.batches, options.target) for trial in trials)
        spent = now() - begun >= options.budget * len(trials)
        if done >= options.batches and here.world.agree(enough or spent):
            return


def time_calls(options: CommsOptions, here: Session, trials: Sequence[Trial], guess: float) -> None:
    """Entry and exit of single calls, each after a barrier, by turns, until the times are known well or time is up.

    guess: s that one call of every trial takes together.
    """
    begun, budget = now(), options.budget * len(trials)
    while True:
        done = len(trials[0].entries)
        affordable = int((budget - (now() - begun)) / guess)
        most = min(next_look(done), options.max_calls) - done
        wanted = here.world.agree(min(most, max(affordable, FEWEST_CALLS - done, 1)))
        turn = wanted if len(trials) == 1 else TURN
        for first in range(0, wanted, turn):
            for trial in trials:
                time_turn(trial, min(turn, wanted - first), checked=first == 0)
        done += wanted
        enough = looks(done) and all(is_settled(across_ranks(here, trial), options.target) for trial in trials)
        if enough or done >= options.max_calls or here.world.agree(now() - begun >= budget):
            return


def time_turn(trial: Trial, count: int, checked: bool) -> None:
    """So many single calls. checked: the first one's data are looked at, as soon as it says that it is done."""
    barrier, complete = trial.barrier, trial.complete
    trial.refill()
    for number in range(count):
        barrier()
        # ---- timed region
        enter = now()
        complete()
        leave = now()
        # ----
        trial.entries.append(enter)
        trial.exits.append(leave)
        if checked and number == 0:
            trial.check(QUICK_LOOK)


def looks(samples: int) -> bool:
    """Whether the stopping rule looks after this many samples."""
    return next_look(samples - 1) == samples


def across_ranks(here: Session, trial: Trial) -> NDArray[np.float64]:
    """Seconds per call over the ranks that take part: from the last entry to the last exit, where clocks allow it."""
    entries, exits = np.asarray(trial.entries), np.asarray(trial.exits)
    if not here.world.one_clock:
        durations = exits - entries if trial.takes_part else np.full(len(entries), -np.inf)
        return here.world.largest(durations)
    if not trial.takes_part:
        entries = exits = np.full(len(entries), -np.inf)
    return here.world.largest(exits) - here.world.largest(entries)


def measure(options: CommsOptions, here: Session, trials: Sequence[Trial]) -> list[Line]:
    """Check, warm up, time both ways, and record the raw samples of one size over one transport or two."""
    for trial in trials:
        trial.refill()
        trial.call()
        trial.check()
        start = now()
        for _ in range(options.warmup):
            trial.call()
        here.device.synchronize()
        here.recorder.block("warmup_time", "s", [now() - start], {**trial.tags, "calls": options.warmup})

    guesses = [one_call(trial) for trial in trials]
    for trial, guess in zip(trials, guesses, strict=True):
        calls = max(1, min(options.calls, int(options.budget / options.batches / guess)))
        trial.calls = here.world.agree(calls)
    time_batches(options, here, trials)
    time_calls(options, here, trials, sum(guesses))
    return [keep(options, here, trial) for trial in trials]


def one_call(trial: Trial) -> float:
    """Seconds of one call: enough to know how many are affordable."""
    trial.barrier()
    start = now()
    trial.complete()
    return max(now() - start, 1e-9)


def keep(options: CommsOptions, here: Session, trial: Trial) -> Line:
    """Record a trial's raw samples, and derive what is printed of them."""
    recorder, world = here.recorder, here.world
    seen = {"looked_at": trial.looked_at, "of": trial.elements}
    recorder.block("check_errors", "1", trial.checks, {**trial.tags, **seen})
    if trial.late:
        recorder.block("late_elements", "1", [trial.late], trial.tags)
    if trial.takes_part:
        recorder.block("batch_time", "s", trial.batches, {**trial.tags, "calls": trial.calls})
        recorder.block("call_entry", "s", trial.entries, trial.tags)
        recorder.block("call_exit", "s", trial.exits, trial.tags)
    wrong = sum(int(str(count)) for count in world.gather(sum(trial.checks)))
    batches = np.asarray(trial.batches)
    slowest = world.largest(batches if trial.takes_part else np.full(len(batches), -np.inf))
    times = across_ranks(here, trial)
    p99 = percentile(times, 99) if len(times) >= FEWEST_FOR_PERCENTILE[99] else None
    per_call = mean_of_batches(slowest, trial.calls)
    heading = heading_of(options, here, trial)
    redop = trial.redop if trial.operation.reduces else "none"
    root = 0 if trial.op in ("broadcast", "reduce", "gather", "scatter") else -1
    size, itemsize = trial.size, ITEM_BYTES[trial.dtype]
    return Line(heading, size, itemsize, trial.dtype, redop, root, wrong, per_call, median_interval(times), p99)


def heading_of(options: CommsOptions, here: Session, trial: Trial) -> Heading:
    """What all sizes of a sweep share."""
    shown = ("placement", "asynchronous", "coalesced", "graph")
    variant = "".join(f", {key} {trial.tags[key]}" for key in shown if key in trial.tags)
    world = here.world
    single = "last entry to last exit" if world.one_clock else "longest over ranks (hosts without a common clock)"
    size, groups = trial.settings[0].world, int(str(trial.tags.get("groups", 1)))
    hosts, name = len(set(world.hosts)), trial.transport.name
    return Heading(trial.op, size, groups, hosts, name, here.device.name, single, variant)


def audit_order(options: CommsOptions, here: Session, sweep: Sequence[Sequence[Trial]]) -> None:
    """Time some sizes of a finished sweep again in random order: a figure must not depend on what ran before it."""
    chosen = [sweep[index] for index in sorted({round(i * (len(sweep) - 1) / (AUDITED - 1)) for i in range(AUDITED)})]
    random.Random(options.seed).shuffle(chosen)
    short = options.model_copy(update={"budget": options.budget / AUDITED})
    for trials in chosen:
        for trial in trials:
            trial.entries, trial.exits = [], []
            trial.prepare(options)
            trial.refill()
        time_calls(short, here, trials, sum([one_call(trial) for trial in trials]))
        for trial in trials:
            if trial.takes_part:
                here.recorder.block("call_entry", "s", trial.entries, {**trial.tags, "order": "random"})
                here.recorder.block("call_exit", "s", trial.exits, {**trial.tags, "order": "random"})
            trial.release()


def variants(options: CommsOptions) -> Iterator[Variant]:
    """Every sweep that was asked for."""
    placements = ("in", "out") if options.placement == "both" else (options.placement,)
    for op, dtype, redop, placement in product(options.ops, options.dtype, options.redop, placements):
        if redop != options.redop[0] and not OPERATIONS[op].reduces:
            continue
        if op == "barrier" and (dtype, placement) != (options.dtype[0], placements[0]):
            continue
        yield Variant(op, dtype, redop, placement)


def why_not(options: CommsOptions, here: Session, trials: Sequence[Trial]) -> str | None:
    """Why a sweep cannot run, tried at its smallest size; None if it can. The same on every rank."""
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


def refuse_too_large(here: Session, trials: Sequence[Trial]) -> None:
    """Raise BadInput, on every rank, if a size needs more memory than there is on any."""
    free = here.device.memory().free
    sharers = here.world.local_size if here.device.type == "cpu" else 1
    largest = max(trials, key=lambda trial: trial.bytes_needed)
    need = largest.bytes_needed * sharers
    lacking = here.world.largest(np.array([need - (free if free is not None else need)], dtype=np.float64))[0]
    if lacking > 0:
        raise BadInput(
            f"--max: {largest.op} of {format_size(largest.size)} needs {format_size(largest.bytes_needed)} on each of "
            f"{sharers} ranks, {format_size(int(lacking))} more than {'this host' if sharers > 1 else 'the device'} has "
            "free; give a smaller one"
        )


def compared(trials: Sequence[Trial], lines: Sequence[Line]) -> str:
    """The second transport against the first, by the pairs of batches that took turns."""
    first, second = ([seconds / trial.calls for seconds in trial.batches] for trial in trials)
    ratio = compare_pairs(first, second).ratio
    spread = f"[{ratio.low:.3g}, {ratio.high:.3g}]" if ratio.low and ratio.high else "(too few pairs for an interval)"
    names = f"{lines[1].heading.transport} / {lines[0].heading.transport}"
    return (
        f"# {names} at {lines[0].size} B: time x {ratio.value:.3g} {spread}, rank 0, {ratio.samples} pairs of batches"
    )


def bench(options: CommsOptions, here: Session, transports: Sequence[Transport]) -> None:
    """Measure every sweep and print its table. Raises RunFailed on rank 0 if any data check failed."""
    header, row = STYLES[options.style]
    first, members = here.world.is_first, len(options.groups(here.world.size)[0])
    sweeps = {
        variant: [
            [Trial(options, here, transport, variant, size) for transport in transports]
            for size in options.sizes(variant.op, members, ITEM_BYTES[variant.dtype])
        ]
        for variant in variants(options)
    }
    refuse_too_large(here, [trial for sweep in sweeps.values() for trials in sweep for trial in trials])
    begun, done, total, wrong, refusals = now(), 0, sum(map(len, sweeps.values())), 0, []
    for sweep in sweeps.values():
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
            lines = measure(options, here, trials)
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
            audit_order(options, here, sweep)
    if refusals and len(refusals) == len(sweeps):
        raise BadInput(f"nothing can be measured: {refusals[0]}")
    if first:
        kept = f"raw samples in {options.out}" if options.out else "no raw samples kept; give --out DIR to keep them"
        print(f"# {total} measurements in {format_duration(now() - begun)}; {kept}")
    if wrong and first:
        raise RunFailed(f"{wrong} elements are wrong after their collective; trust no figure of this run")


def named_transports(options: CommsOptions, here: Session) -> list[str]:
    """The transport that is measured, and the one that it is compared with, if any."""
    own = MPI_BACKEND if options.transport == "mpi" else here.world.backend
    if options.versus is None:
        return [own]
    other = MPI_BACKEND if options.versus == "mpi" else options.versus
    if other == own:
        raise BadInput(f"--versus {options.versus}: is what --transport measures already; name another")
    return [own, other]


if __name__ == "__main__":
    arguments = parse_command_line(CommsOptions, __doc__)
    with session(arguments, "comms/bench") as joined:
        groups = arguments.groups(joined.world.size)
        opened = [
            open_transport(name, joined.world, joined.device, groups) for name in named_transports(arguments, joined)
        ]
        bench(arguments, joined, opened)
