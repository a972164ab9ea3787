"""How long it takes to read and score a large run, and how much memory.

    python benchmarks/reading.py
    python benchmarks/reading.py --ranks 1000 --steps 1000

Makes a run folder of RANKS × STEPS × 4 metrics with our own recorder, then reads and scores it in a process of its own,
several times. Must reach, for 1,000 × 1,000: 10 s and 1 GB at most.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from assay.estimates import median_interval
from assay.record import Header
from assay.recorder import Recorder
from assay.rundir import SCHEMA, Status, write_document

TIME_LIMIT, MEMORY_LIMIT = 10.0, 1e9
METRICS = (("step_time", "s"), ("loss", "1"), ("grad_norm", "1"), ("tokens", "tokens"))

# The process that is measured: `assay score` on the folder, without its table.
READER = """
import resource, sys, time
start = time.monotonic()
from pathlib import Path
from assay.results import evaluate
result = evaluate(Path(sys.argv[1]))
figures = {figure.metric: figure.value for figure in result.cases[0].figures}
assert figures["tgs"] > 0, figures
print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def make_run(folder: Path, ranks: int, steps: int) -> int:
    """Write a run folder as a training case of `ranks` ranks would; its bytes."""
    script = "workloads/pretrain"
    case = {"name": "train", "script": script, "world": ranks, "options": {"seq_len": 128}}
    write_document(folder / "run.json", {"schema": SCHEMA, "suite": {"cases": [case]}, "cases": ["train"]})
    write_document(folder / "cases/train/case.json", case)
    attempt = folder / "cases/train/attempt-1"
    noise = random.Random(1)
    tags = {"model": "llama-tiny", "engine": "fsdp", "data": "dummy", "dtype": "float32", "phase": "measured"}
    for rank in range(ranks):
        header = Header(rank, ranks, rank % 8, 8, f"n{rank // 8}", rank, "boot", "cpu", "CPU", "gloo", script, 0.0, 0.0)
        recorder = Recorder(attempt / f"rank-{rank:05d}.jsonl", header)
        series = [recorder.series(metric, unit, tags, first_step=0) for metric, unit in METRICS]
        for _ in range(steps):
            for one in series:
                one.add(noise.lognormvariate(-1, 0.1))
        recorder.close()
    write_document(attempt / "status.json", asdict(Status("passed", "run", 0, 1.0)))
    return sum(path.stat().st_size for path in attempt.glob("*.jsonl"))


def main() -> None:
    """Make the run, read it RUNS times, print time and memory with their limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        size = make_run(Path(name), args.ranks, args.steps)
        made = f"{args.ranks} ranks × {args.steps} steps × {len(METRICS)} metrics, {size / 1e6:.0f} MB"
        print(f"{made}, written in {time.monotonic() - start:.1f} s")
        times, peaks = [], []
        for _ in range(args.runs):
            done = subprocess.run([sys.executable, "-c", READER, name], check=True, capture_output=True, text=True)
            seconds, peak = map(float, done.stdout.split())
            times.append(seconds)
            peaks.append(peak)
    time_taken = median_interval(times)
    high = time_taken.high or max(times)
    word = "holds" if high <= TIME_LIMIT else "fails" if (time_taken.low or min(times)) > TIME_LIMIT else "undecided"
    print(f"read and scored in {time_taken.value:.2f} s [{min(times):.2f}, {high:.2f}], limit {TIME_LIMIT:g} s: {word}")
    word = "holds" if max(peaks) <= MEMORY_LIMIT else "fails"
    print(f"peak memory {max(peaks) / 1e6:.0f} MB, limit {MEMORY_LIMIT / 1e6:.0f} MB: {word}")


if __name__ == "__main__":
    main()
