"""What our launching costs: from a batch script's start to the first step, against an sbatch file written by hand.

    python -m benchmarks.launch                 # as root: a real Slurm of two hosts is started on this machine
    python -m benchmarks.launch --pairs 15 --rendezvous c10d

Must reach: ours at most 1 s more than a hand-written sbatch of the same torchrun, in 5 pairs or more. One round is one job
of each kind, in changing order: by hand; the sbatch file that `assay run --launcher slurm` puts into the run folder;
slurm/train_8card.sh with ASSAY_PRESET=tiny. All train the same tiny model. The first command of every script writes down
the time; the first step begins when the last rank's records say so. Every Python process writes down its start, too, which
tells where the time goes.
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from assay.estimates import CONFIDENCE, interval_ranks
from assay.jobs import groups
from assay.launchers.sbatch import render
from assay.options.base import command_line
from assay.record import read_rank_file
from assay.rundir import WATCHER
from assay.runner import create_run
from assay.scripts import script_path
from assay.suite import Case, Suite
from assay.undertaking import read_suite
from tests.cluster.lab import Lab, cluster

ROOT = Path(__file__).parents[1]
LIMIT = 1.0  # s
SHAPES = ((2, 1), (1, 2))  # hosts, ranks on each
SUITE, CHANGES = "train-tiny", ["steps=2"]
BY_HAND, OURS, SCRIPT = "by hand", "assay run", "train_8card.sh"
SECONDS = 180.0  # longest wait for a job

# Python reads it at every start. What it costs, both sides pay.
STARTS = """\
import os, sys, time
if "LAUNCH_STARTS" in os.environ:
    with open(os.environ["LAUNCH_STARTS"], "a") as file:
        file.write(f"{time.time()} {' '.join(sys.orig_argv[1:3])}\\n")
"""
STAGES = {"-m assay": "assay", "-m assay.launchers.lifeline": "lifeline", "-m assay.launchers.node": "torchrun"}
ORDER = ("assay", "lifeline", "torchrun", "ranks", "joined", "first step")


@dataclass(frozen=True)
class Bench:
    """One shape on a running cluster. folder: for what its jobs leave."""

    lab: Lab
    folder: Path
    nodes: int
    per_node: int
    rendezvous: str

    def suite(self) -> Suite:
        """The tiny training suite on this shape."""
        given = {"launcher": "slurm", "nodes": self.nodes, "per_node": self.per_node}
        return read_suite(SUITE, CHANGES, given)

    def run(self, job: Path, script: str, records: Callable[[], Path], *args: str) -> dict[str, float]:
        """Submit a batch script and see it through to the end of its first case; stage → s since the script's start."""
        job.mkdir(parents=True)
        file, output = job / "job.sbatch", job / "job.out"
        file.write_text(stamped(script, job / "begun"))
        self.lab.idle(60)
        env = {"PYTHONPATH": str(self.folder), "LAUNCH_STARTS": str(job / "starts")}
        env |= {"ASSAY_HOME": str(ROOT), "ASSAY_PYTHON": sys.executable, "ASSAY_RUNS": str(job), "ASSAY_PRESET": "tiny"}
        options = [f"--output={output}", f"--nodes={self.nodes}", f"--gpus-per-node={self.per_node}", "--exclusive"]
        done = self.lab.login(["sbatch", "--parsable", *options, str(file), *args], cwd=job, env=env)
        if done.returncode:
            raise SystemExit(f"sbatch: {done.stderr.strip()}")
        number = int(done.stdout)
        deadline = time.monotonic() + SECONDS
        while (ended := stages(job, records(), self.nodes * self.per_node)) is None:
            if self.lab.job(number)["JobState"] in ("FAILED", "CANCELLED", "TIMEOUT") or time.monotonic() > deadline:
                raise SystemExit(f"{file}: no first step\n{output.read_text()}")
            time.sleep(0.5)
        # What a script has behind its first case is not measured here.
        self.lab.login(["scancel", str(number)], cwd=job)
        self.lab.wait_job(number, {"COMPLETED", "CANCELLED", "FAILED"}, 60)
        return ended

    def by_hand(self, job: Path) -> dict[str, float]:
        """The file that everybody writes."""
        records = job / "records"
        script = hand_written(groups(self.suite(), job)[0].cases[0], self, records)
        return self.run(job, script, lambda: records)

    def ours(self, job: Path) -> dict[str, float]:
        """The file in the run folder, of the suite's first case alone."""
        suite, path = self.suite(), job.with_name(f"{job.name}-run")
        create_run(suite, path, WATCHER).unlock()
        group = groups(suite, path)[0]
        return self.run(job, render(group.job), lambda: path / "cases" / group.cases[0].name / "attempt-1")

    def script(self, job: Path) -> dict[str, float]:
        """The script that a cluster's user submits."""
        name = groups(self.suite(), job)[0].cases[0].name
        options = [word for change in CHANGES for word in ("-o", change)]

        def records() -> Path:
            return next(job.glob(f"*/cases/{name}/attempt-1"), job / "none-yet")

        return self.run(job, (ROOT / "slurm/train_8card.sh").read_text(), records, *options)


def hand_written(case: Case, bench: Bench, records: Path) -> str:
    """An sbatch file that starts the case's script by torchrun on every host."""
    options = case.options.model_copy(update={"out": records})
    program = shlex.join([str(script_path(case.script)), *command_line(options)])
    torchrun = f"{Path(sys.executable).with_name('torchrun')} --nnodes=$SLURM_NNODES --nproc-per-node={bench.per_node}"
    if bench.rendezvous == "c10d":
        start = f"srun {torchrun} --rdzv-id=$SLURM_JOB_ID --rdzv-backend=c10d --rdzv-endpoint=$head:29500 {program}"
    else:
        # The shell on every host knows which one it is.
        start = (
            f"srun bash -c '{torchrun} --node-rank=$SLURM_NODEID --master-addr='$head' --master-port=29500 {program}'"
        )
    return f"""\
#!/bin/bash
#SBATCH --ntasks-per-node=1
#SBATCH --time=10
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1
{start}
"""


def stamped(script: str, stamp: Path) -> str:
    """The same batch script, whose first command writes down the time."""
    lines = script.splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    return "\n".join([*lines[:first], f'echo "$EPOCHREALTIME" >{stamp}', *lines[first:]]) + "\n"


def stages(job: Path, records: Path, world: int) -> dict[str, float] | None:
    """Seconds from the script's start to the last process of every stage; None as long as a rank has told no step."""
    files = [read_rank_file(path) for path in sorted(records.glob("rank-*.jsonl"))] if records.is_dir() else []
    joined, stepped = [], []
    for file in files:
        steps = file.of("step_time")
        if file.header is not None and steps:
            to_wall = file.header.wall - file.header.monotonic
            joined.append(file.header.wall)
            stepped.append(steps[0].t_first - float(steps[0].samples[0]) + to_wall)
    if len(stepped) < world:
        return None
    found = {"joined": max(joined), "first step": max(stepped)}
    for line in (job / "starts").read_text().splitlines():
        moment, _, words = line.partition(" ")
        stage = STAGES.get(words, "ranks" if words.endswith(".py") else "torchrun" if "/torchrun" in words else None)
        # Behind the first step come the case's other processes, and other cases.
        if stage is not None and float(moment) < found["first step"]:
            found[stage] = max(found.get(stage, 0.0), float(moment))
    begun = float((job / "begun").read_text())
    return {stage: found[stage] - begun for stage in ORDER if stage in found}


def report(shape: str, taken: dict[str, list[dict[str, float]]]) -> None:
    """Where the time goes, every raw value, and what ours cost more than the hand-written file."""
    print(f"\n{shape}: median seconds from the script's start to the last start of")
    print(f"{'':16}" + "".join(f"{stage:>12}" for stage in ORDER))
    for kind, rounds in taken.items():
        cells = [
            f"{statistics.median(one[stage] for one in rounds):12.2f}" if stage in rounds[0] else f"{'–':>12}"
            for stage in ORDER
        ]
        print(f"{kind:16}" + "".join(cells))
    totals = {kind: [one["first step"] for one in rounds] for kind, rounds in taken.items()}
    for kind, values in totals.items():
        print(f"{kind:16}to the first step: {' '.join(f'{value:.2f}' for value in values)} s")
    for kind in list(taken)[1:]:
        for stage in ("torchrun", "first step"):
            pairs = zip(taken[BY_HAND], taken[kind], strict=True)
            more = [ours[stage] - theirs[stage] for theirs, ours in pairs]
            print(f"{kind} − {BY_HAND}, to the {stage}: {verdict(more)}", flush=True)


def verdict(differences: list[float]) -> str:
    """The median difference with its interval, and whether that lies below the limit, above it, or on both sides."""
    ordered, ranks = sorted(differences), interval_ranks(len(differences))
    value = f"{statistics.median(ordered):+.2f} s"
    if ranks is None:
        return f"{value} in {len(ordered)} pairs, too few for an interval, limit +{LIMIT:g} s: undecided"
    low, high = ordered[ranks[0]], ordered[ranks[1]]
    word = "holds" if high <= LIMIT else "fails" if low > LIMIT else "undecided"
    interval = f"[{low:+.2f}, {high:+.2f}], {CONFIDENCE:.0%} of the median of {len(ordered)} pairs"
    return f"{value} {interval}, limit +{LIMIT:g} s: {word}"


def measure(bench: Bench, pairs: int, kinds: list[str]) -> dict[str, list[dict[str, float]]]:
    """Kind → stages of every round. A first job of each, which fills the caches, is not counted."""
    take = {BY_HAND: bench.by_hand, OURS: bench.ours, SCRIPT: bench.script}
    taken: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(pairs + 1):
        for kind in kinds if number % 2 else kinds[::-1]:
            found = take[kind](bench.folder / f"{number}-{kinds.index(kind)}")
            if number:
                taken[kind].append(found)
    return taken


def main() -> None:
    """Both shapes, one after the other, on one cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="rounds that count, for each shape [7]")
    parser.add_argument(
        "--rendezvous",
        choices=("static", "c10d"),
        default="static",
        help="of the hand-written torchrun [static: as ours]",
    )
    parser.add_argument("--no-script", action="store_true", help="leave slurm/train_8card.sh out")
    given = parser.parse_args()
    kinds = [BY_HAND, OURS] if given.no_script else [BY_HAND, OURS, SCRIPT]
    print(f"load of this machine before: {os.getloadavg()[0]:.1f}; rendezvous by hand: {given.rendezvous}", flush=True)
    with tempfile.TemporaryDirectory(prefix="launch-") as folder, cluster(nodes=2) as lab:
        for nodes, per_node in SHAPES:
            shape = f"{nodes}x{per_node}"
            place = Path(folder) / shape
            place.mkdir()
            (place / "sitecustomize.py").write_text(STARTS)
            bench = Bench(lab, place, nodes, per_node, given.rendezvous)
            report(f"{nodes} hosts × {per_node} ranks", measure(bench, given.pairs, kinds))
    print(f"load of this machine after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
