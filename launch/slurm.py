"""Start a script on N hosts × M ranks by Slurm: as a step in the job that this runs in, else as a job of its own.

    python launch/slurm.py -N 4 -n 8 comms/bench.py -- --ops all_reduce
    python launch/slurm.py -N 4 -n 8 --sbatch=--partition=gpu --sbatch=--gpus-per-node=8 workloads/pretrain.py -- --engine fsdp
    python launch/slurm.py -N 4 -n 8 --spawn srun my_script.py

A job of its own is written as a file that can be submitted again by hand, and followed until it ends: what it prints is
printed here, its exit code is this command's. Ctrl-C stops following; the job goes on. Partition, account and qos can
also be given by Slurm's own variables (SBATCH_PARTITION, …).
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from assay import machine
from assay.errors import INTERRUPTED_EXIT, AssayError, BadInput
from assay.launchers import by_hand, sbatch
from assay.launchers.following import SHORTEST_SECONDS, Followed, look_at, pause_after
from assay.launchers.job_state import exit_code
from assay.launchers.slurm import Allocation, SlurmLauncher, address_of, allocation, check_srun
from assay.suite_format import DEFAULT_OPTIONS, sbatch_option


def main() -> None:
    """Become srun inside a job; outside, submit one that does."""
    parser = by_hand.parser(str(__doc__), nodes=True)
    parser.add_argument("--spawn", choices=["torchrun", "srun"], default="torchrun", help="who starts ranks [torchrun]")
    parser.add_argument("--time", type=_minutes, default=60.0, metavar="MINUTES", help="time limit of the job [60]")
    parser.add_argument(
        "--sbatch", action="append", metavar="OPTION", help="an option of the job [--exclusive]", type=_option
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the job's file and output [runs]")
    parser.add_argument("--no-wait", action="store_true", help="submit and do not follow")
    told = parser.parse_args()
    try:
        given = allocation(os.environ)
        if given is None:
            _submit(told)
        _start_step(told, given)
    except AssayError as error:
        by_hand.fail(error)


def _option(text: str) -> str:
    try:
        return sbatch_option(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"expected minutes above 0, got {text!r}")
    return minutes


def _start_step(told: argparse.Namespace, given: Allocation) -> None:
    if told.nodes > len(given.hosts):
        raise BadInput(
            f"-N {told.nodes}: the job {given.job} has {len(given.hosts)} hosts; ask for more with sbatch -N"
        )
    check_srun()
    by_hand.become(told, SlurmLauncher(given, told.spawn, address_of(given.hosts[0])))


def _submit(told: argparse.Namespace) -> NoReturn:
    started = by_hand.job(told)
    inside = [str(Path(__file__).resolve()), "-N", str(told.nodes), "-n", str(told.per_node), "--spawn", told.spawn]
    inside += ["--port", str(told.port)] if told.port else []
    command = (machine.python(), *inside, started.program[0], "--", *started.program[1:])
    folder = told.out.resolve() / f"launch-{started.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    options = tuple(told.sbatch or DEFAULT_OPTIONS)
    job = sbatch.BatchJob(started.name, told.nodes, told.time * 60, command, Path.cwd(), folder, options)
    if told.dry_run:
        print(sbatch.render(job), end="")
        raise SystemExit(0)
    sbatch.check_sbatch(sbatch.render(job))
    number = sbatch.write_and_submit(job)
    print(f"job {number}: {job.file}", flush=True)
    if told.no_wait:
        raise SystemExit(0)
    _follow(Followed(number, started.name, job.output(number), _say, lambda line: print(line, flush=True)))


def _say(text: str) -> None:
    # Beside what the script prints, not in it.
    print(text, file=sys.stderr, flush=True)


def _follow(followed: Followed) -> NoReturn:
    try:
        pause = SHORTEST_SECONDS
        while not followed.over:
            pause = pause_after(look_at([followed], _say), pause)
            time.sleep(0.0 if followed.over else pause)
    except KeyboardInterrupt:
        print(f"no longer following; job {followed.job} goes on: scancel {followed.job} ends it", file=sys.stderr)
        raise SystemExit(INTERRUPTED_EXIT) from None
    raise SystemExit(exit_code(followed.job, followed.state))


if __name__ == "__main__":
    main()
