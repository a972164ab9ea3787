"""A suite as jobs in Slurm's queue: written, submitted, watched, and taken up again by a later watcher.

Each job runs `assay run --resume RUN` for its cases on the hosts that Slurm gives it. The jobs queue up one behind the
other, so that no two measure at once, and need no watcher: it tells how they go, and writes down what ended a case that
could not do so itself.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay import machine
from assay.errors import BadInput, RunFailed
from assay.launchers import sbatch
from assay.launchers.following import LONGEST_SECONDS, SHORTEST_SECONDS, Followed, look_at, pause_after
from assay.launchers.job_state import PASSING, NoAnswer, ask, cancel
from assay.rundir import CaseDir, RunDir, State, Status, read_document, write_document
from assay.suite import Case, Suite, layout_of

MOST_QUEUED = 20  # jobs of a run in the queue at once; sites limit how many a user may have
START_SECONDS = 300.0  # of a job, for what comes before and between its cases
CANCELLED = "cancelled"  # a file that says so
SEEN_SECONDS = 60.0  # in which a network file system shows what another host has written
GROUP = "suite"  # name of the job that holds all cases


@dataclass(frozen=True)
class Group:
    """The cases of one job."""

    job: sbatch.BatchJob
    cases: tuple[Case, ...]


def groups(suite: Suite, run_path: Path) -> list[Group]:
    """The jobs of a suite. Nothing is written."""
    chosen = [(GROUP, tuple(suite.cases))] if suite.file.jobs == "suite" else [(c.name, (c,)) for c in suite.cases]
    return [Group(_batch_job(suite, name, cases, run_path.resolve()), cases) for name, cases in chosen]


def _batch_job(suite: Suite, name: str, cases: Sequence[Case], run_path: Path) -> sbatch.BatchJob:
    # A job of one case leaves the report to its watcher: others may still be to come.
    only = ("--case", name) if suite.file.jobs == "case" else ()
    command = (machine.python(), "-m", "assay", "run", "--resume", str(run_path), *only)
    nodes = max(layout_of(case, suite.file).nodes for case in cases)
    seconds = START_SECONDS + sum(case.time_limit for case in cases)
    options = tuple(suite.file.sbatch)
    return sbatch.BatchJob(name, nodes, seconds, command, Path.cwd(), run_path / "jobs", options)


def check_jobs(suite: Suite, run_path: Path) -> None:
    """Raise BadInput if Slurm would not take the largest of the jobs, before anything is written."""
    if "\\" in str(run_path.resolve()) or "\n" in str(run_path.resolve()):
        raise BadInput(
            f"{run_path}: sbatch cannot write into a folder with a backslash or a new line; give another --out"
        )
    sbatch.check_sbatch(sbatch.render(max((group.job for group in groups(suite, run_path)), key=lambda job: job.nodes)))


def run_jobs(run: RunDir, suite: Suite, say: Callable[[str], None]) -> bool:
    """Submit what has not passed and is not under way, and watch until all is over; whether all cases have passed.

    Raises KeyboardInterrupt on Ctrl-C: the jobs go on. Raises RunFailed if Slurm refuses a job or the folder cannot be
    written.
    """
    try:
        waiting = [group for group in groups(suite, run.path) if not _passed(run, group)]
        followed: list[tuple[Group, Followed]] = []
        for group in list(waiting):
            known = _surely_under_way(group, say)
            if known is not None:
                say(f"{group.job.name}: is job {known} already")
                followed.append((group, _follow(group, known, say)))
                waiting.remove(group)
        mark, refused = run.path / "jobs" / CANCELLED, ""
        mark.unlink(missing_ok=True)
        pause = SHORTEST_SECONDS
        while waiting or followed:
            if mark.exists():
                waiting.clear()
            while waiting and len(followed) < MOST_QUEUED:
                try:
                    # Behind all of them: one that is cancelled must not let two begin at once.
                    job = _submit(run, waiting[0], [one.job for _, one in followed])
                except RunFailed as error:
                    if not followed:
                        raise
                    if str(error) != refused:
                        say(f"{error}; trying again when a job has ended")
                    refused = str(error)
                    break
                group = waiting.pop(0)
                say(f"{group.job.name}: submitted as job {job}, {group.job.file}")
                followed.append((group, _follow(group, job, say)))
            pause = pause_after(look_at([one for _, one in followed], say), pause)
            for group, one in followed:
                if one.over:
                    _settle(run, group, one)
            followed = [(group, one) for group, one in followed if not one.over]
            if followed or waiting:
                time.sleep(pause)
        return all(run.case(case.name).passed() is not None for case in suite.cases)
    finally:
        run.unlock()


def _follow(group: Group, job: str, say: Callable[[str], None]) -> Followed:
    return Followed(job, group.job.name, group.job.output(job), say, lambda line: say(f"  {line}"))


def cancel_jobs(run: RunDir, suite: Suite) -> list[str]:
    """End the jobs of a run that are queued or running; their ids. Raises NoAnswer if Slurm refuses."""
    mark = run.path / "jobs" / CANCELLED
    if mark.parent.is_dir():
        mark.touch()  # a watcher that lives submits no more
    ended = [job for group in groups(suite, run.path) if (job := _under_way(group)) is not None]
    for job in reversed(ended):  # the end of one lets the next begin
        cancel(job)
    return ended


def _passed(run: RunDir, group: Group) -> bool:
    return all(run.case(case.name).passed() is not None for case in group.cases)


def _record(group: Group) -> Path:
    return group.job.folder / f"{group.job.name}.json"


def _surely_under_way(group: Group, say: Callable[[str], None]) -> str | None:
    # Whether it runs must be known: a second one beside it would spoil both.
    while True:
        try:
            return _under_way(group)
        except NoAnswer as error:
            say(f"{group.job.name}: {error}; asking again")
            time.sleep(LONGEST_SECONDS)


def _under_way(group: Group) -> str | None:
    """The job that was submitted for these cases and is not over, as far as Slurm tells. Raises NoAnswer."""
    try:
        submitted = read_document(_record(group))
    except BadInput:
        return None
    job = str(submitted.get("job", ""))
    if not job.isdigit() or submitted.get("ended"):
        return None
    state = ask([job]).get(job)
    return job if state is not None and not (state.ended and state.state not in PASSING) else None


def _submit(run: RunDir, group: Group, after: Sequence[str]) -> str:
    job = sbatch.write_and_submit(group.job, after)
    # How many attempts there were tells later whether this job has made one.
    attempts = {case.name: len(run.case(case.name).attempts()) for case in group.cases}
    write_document(_record(group), {"job": job, "submitted": time.time(), "attempts": attempts})
    return job


def _settle(run: RunDir, group: Group, job: Followed) -> None:
    """Write down how a job ended, and what that means for its cases."""
    ended = job.state.state if job.state is not None else "gone"
    submitted = read_document(_record(group))
    write_document(_record(group), {**submitted, "ended": ended})
    for case in group.cases:
        _close(run.case(case.name), submitted.get("attempts", {}).get(case.name, 0), run, group, job)


def _close(folder: CaseDir, earlier: int, run: RunDir, group: Group, job: Followed) -> None:
    """A case that has no status of this job, or only that it was interrupted, gets one that says why.

    earlier: its attempts before the job.
    """
    state = job.state
    deadline = time.monotonic() + (SEEN_SECONDS if state is not None and state.state == "COMPLETED" else 0.0)
    while True:
        attempts = folder.attempts()[earlier:]
        status = folder.status(attempts[-1]) if attempts else None
        if folder.passed() is not None or (status is not None and status.phase != "interrupted"):
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(1.0)
    attempt = attempts[-1] if attempts else folder.new_attempt()
    why = f"Slurm job {job.job} is gone: squeue has forgotten it, and sacct does not know it"
    if state is not None:
        why = state.sentence.replace(" is ", " ended as ", 1)
    when = "" if attempts else " before the case began"
    seconds = status.seconds if status is not None else 0.0
    advice = f"see {group.job.output(job.job)}, then: assay run --resume {run.path}"
    kind: State = "timeout" if attempts and state is not None and state.state == "TIMEOUT" else "failed"
    run.write_status(attempt, Status(kind, "job", None, seconds, why + when, advice))
