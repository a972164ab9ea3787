"""What Slurm says of jobs: one squeue for all of them, and sacct where it keeps books. Reading is pure, asking is not.

An answer can fail to come (slurmctld restarts, the network is slow): that says nothing about a job, and is asked again.
A job that ended long ago is no longer known to squeue at all.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from assay.errors import AssayError

ANSWER_SECONDS = 30.0  # for one answer of squeue, sacct or scancel
_FILTERS = ("SQUEUE_", "SACCT_", "SCANCEL_")
_FORMAT = "%i|%T|%r|%N"

_RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"})
_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})  # fmt: skip
# Ends that a requeued job passes through: squeue may show them for a moment before it is pending again.
PASSING = frozenset({"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"})
# Reasons for which a job waits until somebody does something.
_FIXES = {
    "JobHeldUser": "scontrol release {id}",
    "JobHeldAdmin": "ask the administrators to release it",
    "launch failed requeued held": "look at the node's log, then scontrol release {id}",
    "DependencyNeverSatisfied": "scancel {id}, and run again",
    "PartitionNodeLimit": "ask for fewer nodes or another partition; sinfo tells the limits",
    "PartitionTimeLimit": "ask for less time or another partition; sinfo tells the limits",
    "PartitionDown": "wait, or give another partition; sinfo shows which are up",
    "PartitionInactive": "wait, or give another partition; sinfo shows which are up",
    "BadConstraints": "no node has what was asked for; scancel {id} and ask for something else",
    "ReqNodeNotAvail": "a node that it needs is down or drained; sinfo -R tells why",
    "Nodes required for job are DOWN": "sinfo -R tells which nodes, and why",
    "AssocGrpCpuLimit": "the account's limit is used up; wait or give another account",
    "QOSMaxJobsPerUserLimit": "too many jobs of yours run; wait",
}


class NoAnswer(AssayError):
    """Slurm did not answer; what it would have said is not known."""


@dataclass(frozen=True)
class JobState:
    """One job as Slurm sees it. state: Slurm's own word; reason: why it waits or ended; nodes: where it is or was."""

    job: str
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def running(self) -> bool:
        """Whether it has its nodes."""
        return self.state in _RUNNING

    @property
    def waiting(self) -> bool:
        """Whether it is going to run, or would if somebody let it."""
        return self.state in _WAITING

    @property
    def ended(self) -> bool:
        """Whether it is over, or seems so: `PASSING` states may be followed by another life."""
        return not (self.running or self.waiting)

    @property
    def sentence(self) -> str:
        """For people: `Slurm job 12 is pending (Resources)`, with what to do where somebody must do something."""
        where = f" on {self.nodes}" if self.nodes else ""
        why = f" ({self.reason})" if self.waiting and self.reason not in ("", "None") else ""
        fix = next((text for key, text in _FIXES.items() if self.reason.startswith(key)), "") if self.waiting else ""
        return f"Slurm job {self.job} is {self.state.lower()}{where}{why}" + (
            f": {fix.format(id=self.job)}" if fix else ""
        )


def read_squeue(text: str) -> dict[str, JobState]:
    """Job → state of what squeue printed in `_FORMAT`; lines of another form are left out."""
    found = {}
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) == 4 and words[0].isdigit():
            found[words[0]] = JobState(words[0], words[1].strip(), words[2].strip("() "), words[3].strip())
    return found


def read_sacct(text: str) -> dict[str, JobState]:
    """Job → state of what `sacct --parsable2 --format=JobIDRaw,State,NodeList` printed. `CANCELLED by 0` is CANCELLED."""
    found = {}
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) == 3 and words[0].isdigit() and words[1].split():
            # A requeued job has a line for every life; the last one counts.
            found[words[0]] = JobState(words[0], words[1].split()[0], " ".join(words[1].split()[1:]), words[2])
    return found


def ask(jobs: Sequence[str]) -> dict[str, JobState]:
    """Job → state of those that squeue still knows. Raises NoAnswer."""
    if not jobs:
        return {}
    argv = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", f"--format={_FORMAT}"]
    done = _answer(argv)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise NoAnswer(f"squeue: {_last_line(done.stderr)}")
    return read_squeue(done.stdout)


def ask_books(job: str) -> JobState | None:
    """What the accounting knows of a job that squeue has forgotten; None where no books are kept."""
    # Without a start sacct looks at today only, and a job that began before midnight would never have been.
    start = time.strftime("%Y-%m-%d", time.localtime(time.time() - 60 * 86400))
    argv = ["sacct", "--allocations", "--noheader", "--parsable2", f"--starttime={start}", f"--jobs={job}"]
    try:
        done = _answer([*argv, "--duplicates", "--format=JobIDRaw,State,NodeList"])
    except NoAnswer:
        return None
    return read_sacct(done.stdout).get(job) if done.returncode == 0 else None


def exit_code(job: str, last: JobState | None) -> int:
    """The exit code of a job that is over; 1 where only its failure is known, as of one that a signal ended."""
    if last is not None and last.state == "COMPLETED":
        return 0
    try:
        told = _answer(["scontrol", "show", "job", job, "--oneliner"]).stdout
    except NoAnswer:
        return 1
    code = dict(word.split("=", 1) for word in told.split() if "=" in word).get("ExitCode", "").partition(":")[0]
    return int(code) if code.isdigit() and int(code) else 1


def cancel(job: str) -> None:
    """End a job. Raises NoAnswer if Slurm refuses or is silent."""
    done = _answer(["scancel", job])
    if done.returncode and "already complet" not in done.stderr and "Invalid job id" not in done.stderr:
        raise NoAnswer(f"scancel {job}: {_last_line(done.stderr)}")


def _answer(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=ANSWER_SECONDS,
            # A user's own filters would hide jobs that live.
            env={name: value for name, value in os.environ.items() if not name.startswith(_FILTERS)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswer(f"{argv[0]}: {error}") from None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no answer"
