"""What our own instruments cost, in a loop of no-ops.

    python benchmarks/instrumentation.py

Must reach: at most 20 µs a training step (all its series) and 1 µs a timed call. Every sample is one loop of many
rounds, with the empty loop beside it subtracted; records go to a real file.
"""

import contextlib
import io
import itertools
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from assay.clock import now
from assay.device import HostDevice
from assay.estimates import median_interval
from assay.options import PretrainOptions
from assay.ranks import Session
from assay.record import Header
from assay.recorder import Recorder
from assay.training.course import training_tags
from assay.training.journal import Journal
from assay.training.loop import Step
from assay.world import World

STEP_LIMIT, CALL_LIMIT = 20e-6, 1e-6
ROUNDS, SAMPLES = 20_000, 25


def header() -> Header:
    """A header for records that nobody reads."""
    return Header(0, 1, 0, 1, platform.node(), 0, "", "cpu", "", "", "benchmark", 0.0, 0.0)


def per_round(loop: Callable[[], None]) -> list[float]:
    """Seconds per round of `loop` beyond the same number of empty rounds, interleaved."""
    samples = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        for _ in range(ROUNDS):
            pass
        empty = time.perf_counter() - start
        start = time.perf_counter()
        loop()
        samples.append((time.perf_counter() - start - empty) / ROUNDS)
    return samples


def steps(recorder: Recorder) -> Callable[[], None]:
    """The instruments of one training step of workloads/pretrain.py: its clock and its journal, progress lines included."""
    world = World(0, 1, 0, 1, "none", ("host",), True)
    options = PretrainOptions(steps=ROUNDS * SAMPLES, warmup_steps=0)
    tags = training_tags(options, model=options.model, data=options.data)
    taken = Step(torch.tensor(1.0), torch.tensor(1.0), 1024, torch.tensor(1.0))
    journal = Journal(Session(world, HostDevice(), recorder), options, tags)
    done = itertools.count()

    def loop() -> None:
        last = now()
        for _ in range(ROUNDS):
            end = now()
            journal.add(next(done), end - last, taken)
            last = end

    return loop


def calls() -> Callable[[], None]:
    """The instruments of one timed call in comms/bench.py: entry and exit."""

    def loop() -> None:
        entries: list[float] = []
        exits: list[float] = []
        for _ in range(ROUNDS):
            entries.append(now())
            exits.append(now())

    return loop


def report(what: str, samples: list[float], limit: float) -> None:
    """One line: the cost in ns, its interval (the range, where there is none), its limit."""
    cost = median_interval(samples)
    low, high = cost.low or min(samples), cost.high or max(samples)
    word = "holds" if high <= limit else "fails" if low > limit else "undecided"
    interval = f"[{low * 1e9:,.0f}, {high * 1e9:,.0f}]"
    print(f"{what}: {cost.value * 1e9:,.0f} ns {interval}, limit {limit * 1e9:,.0f} ns: {word} ({cost.method})")


def main() -> None:
    """Measure both and say what 72 hours of them weigh on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank-00000.jsonl"
        recorder = Recorder(path, header())
        with contextlib.redirect_stdout(io.StringIO()):
            cost = per_round(steps(recorder))
        recorder.close()
        report("a training step", cost, STEP_LIMIT)
        size = path.stat().st_size / (ROUNDS * SAMPLES)
        report("a timed call", per_round(calls()), CALL_LIMIT)
    print(
        f"a training step logs {size:.0f} bytes on rank 0; at 1 step/s that is {size * 3600 / 1e6:.2f} MB per rank and hour"
    )


if __name__ == "__main__":
    main()
