"""Jobs for Slurm's queue: the file, which anybody may submit again by hand, and its submission. `render` is pure."""

import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.errors import BadInput, RunFailed
from assay.launchers.job_state import ANSWER_SECONDS


@dataclass(frozen=True)
class BatchJob:
    """A job that runs one command on the first of its hosts; the command starts steps on all of them.

    seconds: what its cases may take; folder: where its file and its output go; options: of sbatch, the last word is theirs.
    """

    name: str
    nodes: int
    seconds: float
    command: tuple[str, ...]
    work: Path
    folder: Path
    options: tuple[str, ...]

    @property
    def file(self) -> Path:
        """The sbatch file."""
        return self.folder / f"{self.name}.sbatch"

    def output(self, job: str) -> Path:
        """What the job prints."""
        return self.folder / f"{self.name}-{job}.out"


def render(job: BatchJob) -> str:
    """The sbatch file."""
    minutes = math.ceil(job.seconds / 60)
    output = str(job.folder / job.name).replace("%", "%%") + "-%j.out"
    options = [
        f"--job-name=assay-{job.name}",
        f"--nodes={job.nodes}",
        f"--time={minutes}",
        f"--output={output}",
        "--open-mode=append",  # a requeued job goes on with its own output
        "--requeue",  # and no --signal: at the time limit Slurm sends SIGTERM by itself, and then says TIMEOUT
        *job.options,
    ]
    lines = [
        "#!/bin/bash",
        "# Written by assay. Submit it again at any time: what has passed is kept, the rest is run.",
        *(f"#SBATCH {_quoted(option)}" for option in options),
        f"cd {shlex.quote(str(job.work))}",
        "# In this shell's place, so that signals reach it and the job's exit code is its own.",
        f"exec {shlex.join(job.command)}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(option: str) -> str:
    name, equals, value = option.partition("=")
    plain = all(character.isalnum() or character in "-_./,:=@%+[]()&|*" for character in value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return option if plain else f'{name}{equals}"{escaped}"'


def check_here() -> None:
    """Raise BadInput if this machine has no sbatch."""
    if shutil.which("sbatch") is None:
        raise BadInput(
            "Slurm: there is no sbatch here; log in where it is, or start on this host alone with --launcher local"
        )


def check_sbatch(text: str) -> None:
    """Whether Slurm would take the file. Raises BadInput with Slurm's own reason, or if there is no Slurm here."""
    check_here()
    done = _sbatch(["--test-only"], text)
    if done.returncode:
        raise BadInput(_refusal(done.stderr))


def write_and_submit(job: BatchJob, after: Sequence[str] = ()) -> str:
    """Write the file and submit it; its job id. Raises RunFailed if the disk or Slurm refuses."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.file.write_text(render(job), encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"{job.file}: {(error.strerror or str(error)).lower()}; make room and run again") from error
    return submit(job, after)


def submit(job: BatchJob, after: Sequence[str] = ()) -> str:
    """Submit the file; its job id. after: jobs that must have ended before. Raises RunFailed if Slurm refuses it now."""
    options = ["--parsable", *([f"--dependency=afterany:{':'.join(after)}"] if after else []), str(job.file)]
    done = _sbatch(options)
    if done.returncode:
        raise RunFailed(f"{job.file}: {_refusal(done.stderr)}")
    number = done.stdout.strip().rpartition("\n")[2].partition(";")[0]
    if not number.isdigit():
        raise RunFailed(f"{job.file}: sbatch said {done.stdout.strip()!r} instead of a job's number; squeue --me tells")
    return number


def _sbatch(options: list[str], text: str | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["sbatch", *options],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_SECONDS,
            env={name: value for name, value in os.environ.items() if not name.startswith("SBATCH_OUTPUT")},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"sbatch does not answer ({error}); is slurmctld up? scontrol ping tells") from None


def _refusal(text: str) -> str:
    """sbatch's first reason, with what to do about it."""
    marks = ("sbatch: error: ", "allocation failure: ", "Batch job submission failed: ")
    lines = []
    for line in text.strip().splitlines():
        for mark in marks:
            line = line.removeprefix(mark)
        lines.append(line.strip())
    reason = next((line for line in lines if line), "no reason given")
    known = {
        "account": "give one with --sbatch=--account=NAME or SBATCH_ACCOUNT",
        "partition": "sinfo lists the partitions; give one with --sbatch=--partition=NAME or SBATCH_PARTITION",
        "qos": "give one with --sbatch=--qos=NAME or SBATCH_QOS",
        "node count": "sinfo tells how many nodes there are",
        "node configuration": "sinfo -R names nodes that are down, sinfo -o '%P %D %c %m %G' tells what nodes have",
        "time limit": "give less with --sbatch=--time=MINUTES",
        "contact slurm controller": "is slurmctld up? scontrol ping tells",
    }
    fix = next((text for word, text in known.items() if word in reason.lower()), "mend it with --sbatch=OPTION")
    return f"sbatch says: {reason}; {fix}"
