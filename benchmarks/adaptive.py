"""What the stopping rule gains: intervals of single calls, adaptive against fixed 5 + 50 calls, in equal time.

    mpirun -n 2 python benchmarks/adaptive.py --transport mpi
    torchrun --nproc-per-node 2 benchmarks/adaptive.py

Must reach, all_reduce from 1 KiB to 64 MiB: median width of the intervals at most 0.7 times that of fixed counts. A round
takes a fixed sweep (5 untimed and 50 timed calls a size, as DeepSpeed's suite does) and then an adaptive one that has the
same time, an equal part for every size. The ratio of a round is the median over sizes of adaptive / fixed width.
"""

from typing import Any

import numpy as np
from pydantic import Field

from assay.beacon import memory_folder, open_beacon
from assay.clock import now
from assay.clock_sync import Alignment
from assay.collectives.job import Job, one_call
from assay.collectives.trial import Trial, Variant
from assay.estimates import Estimate, median_interval
from assay.options import CommsOptions, parse_command_line
from assay.options.base import Size
from assay.ranks import session
from assay.scripts import load_script
from assay.transports import open_transport
from assay.units import format_size

WARMUP, TIMED = 5, 50
LIMIT = 0.7


class AdaptiveOptions(CommsOptions):
    """The sweep, and how often it is repeated."""

    max: Size = 64 << 20
    target: float = 0.002
    max_calls: int = 20480
    rounds: int = Field(6, ge=1, description="rounds of a fixed and an adaptive sweep")


def half_width(job: Job, trial: Trial) -> tuple[float, int]:
    """Relative half width of the p50's interval, and the calls behind it; infinite without an interval."""
    times, _ = job.clocks.call_times(trial.entries, trial.exits)
    found: Estimate = median_interval(times)
    return (found.half_width if found.half_width is not None else np.inf), len(times)


def ratio(one: float, other: float) -> float:
    """one / other; 1 where neither has an interval, because both know as little."""
    return 1.0 if np.isinf(one) and np.isinf(other) else one / other


def sweep(bench: Any, job: Job, trials: list[Trial], budget: float | None) -> tuple[list[tuple[float, int]], float]:
    """(half width, calls) of every size, and the seconds it took. budget: s a size; None: fixed counts."""
    begun, found = now(), []
    for trial in trials:
        trial.entries, trial.exits = [], []
        trial.prepare(job.options)
        trial.refill()
        for _ in range(WARMUP):
            trial.call()
        if budget is None:
            bench.time_turn(job, trial, TIMED, checked=False)
        else:
            options = job.options.model_copy(update={"budget": budget})
            bench.time_calls(Job(options, job.here, job.beacon, job.clocks), [trial], one_call(trial))
        found.append(half_width(job, trial))
        trial.release()
    return found, job.here.world.agree(int((now() - begun) * 1e6)) / 1e6


def main() -> None:
    """In a rank: rounds of both sweeps, and rank 0 prints."""
    options = parse_command_line(AdaptiveOptions, __doc__)
    bench: Any = load_script("comms/bench")
    with session(options, "benchmarks/adaptive") as here:
        transport = open_transport(here.world.backend, here.world, here.device, options.groups(here.world.size))
        beacon = open_beacon(memory_folder(), here.world.rank, here.world.size)
        job = Job(options, here, beacon, Alignment(here.world, here.recorder))
        variant = Variant("all_reduce", "float32", "sum", "auto")
        sizes = list(options.sizes("all_reduce", here.world.size, 4))
        trials = [Trial(options, here, transport, variant, size) for size in sizes]
        ratios = []
        for number in range(options.rounds):
            fixed, seconds = sweep(bench, job, trials, None)
            adaptive, spent = sweep(bench, job, trials, seconds / len(trials))
            ratios.append(
                float(np.median([ratio(one[0], other[0]) for one, other in zip(adaptive, fixed, strict=True)]))
            )
            if here.world.is_first:
                print(f"round {number + 1}: fixed {seconds:.1f} s, adaptive {spent:.1f} s, ratio {ratios[-1]:.2f}")
                for size, one, other in zip(sizes, fixed, adaptive, strict=True):
                    print(
                        f"    {format_size(size):>6}: ±{one[0]:6.1%} of {one[1]} calls, ±{other[0]:6.1%} of {other[1]}",
                        flush=True,
                    )
        if here.world.is_first:
            spread = median_interval(ratios)
            low, high = spread.low, spread.high
            within = f"[{low:.2f}, {high:.2f}]" if low is not None and high is not None else "(too few for an interval)"
            said = "holds" if high is not None and high <= LIMIT else "undecided" if (low or 0) <= LIMIT else "fails"
            print(f"{transport.name}: adaptive / fixed {spread.value:.2f} {within} in {len(ratios)} rounds: {said}")


if __name__ == "__main__":
    main()
