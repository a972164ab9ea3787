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
from assay.launchers.job_state import PASSING, JobState, NoAnswer, ask, ask_books, cancel
from assay.rundir import RunDir, Status, read_document, write_document
from assay.suite import Case, Suite, layout_of

MOST_QUEUED = 20  # jobs of a run in the queue at once; sites limit how many a user may have
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 15.0  # between two looks; the longer, the longer nothing has changed
SETTLE_SECONDS = 6.0  # for which an end must have been seen: a requeue passes through one
PASSING_SECONDS = 30.0  # the same, of ends that are mostly followed by a requeue
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
    seconds = sum(case.time_limit for case in cases)
    options = tuple(suite.file.sbatch)
    return sbatch.BatchJob(name, nodes, seconds, command, Path.cwd(), run_path / "jobs", options)


def check_jobs(suite: Suite, run_path: Path) -> None:
    """Raise BadInput if Slurm would not take the largest of the jobs, before anything is written."""
    sbatch.check_sbatch(sbatch.render(max((group.job for group in groups(suite, run_path)), key=lambda job: job.nodes)))


def run_jobs(run: RunDir, suite: Suite, say: Callable[[str], None]) -> bool:
    """Submit what has not passed and is not under way, and watch until all is over; whether all cases have passed.

    Raises KeyboardInterrupt on Ctrl-C: the jobs go on. Raises RunFailed if Slurm refuses a job or the folder cannot be
    written.
    """
    try:
        waiting = [group for group in groups(suite, run.path) if not _passed(run, group)]
        watched: list[_Watched] = []
        for group in list(waiting):
            known = _under_way(run, group)
            if known is not None:
                say(f"{group.job.name}: is job {known} already")
                watched.append(_Watched(run, group, known, say))
                waiting.remove(group)
        pause = SHORTEST_SECONDS
        while waiting or watched:
            while waiting and len(watched) < MOST_QUEUED:
                group = waiting.pop(0)
                watched.append(_Watched(run, group, _submit(run, group, watched[-1].id if watched else None), say))
                say(f"{group.job.name}: submitted as job {watched[-1].id}, {group.job.file}")
            moved = _look(watched, say)
            watched = [one for one in watched if not one.over]
            pause = SHORTEST_SECONDS if moved else min(LONGEST_SECONDS, pause * 1.3)
            if watched or waiting:
                time.sleep(pause)
        return all(run.case(case.name).passed() is not None for case in suite.cases)
    finally:
        run.unlock()


def cancel_jobs(run: RunDir, suite: Suite) -> list[str]:
    """End the jobs of a run that are queued or running; their ids. Raises NoAnswer if Slurm refuses."""
    ended = [job for group in groups(suite, run.path) if (job := _under_way(run, group)) is not None]
    for job in ended:
        cancel(job)
    return ended


def _passed(run: RunDir, group: Group) -> bool:
    return all(run.case(case.name).passed() is not None for case in group.cases)


def _record(group: Group) -> Path:
    return group.job.folder / f"{group.job.name}.json"


def _under_way(run: RunDir, group: Group) -> str | None:
    """The job that was submitted for these cases and is not over, as far as Slurm tells."""
    try:
        submitted = read_document(_record(group))
    except BadInput:
        return None
    job = str(submitted.get("job", ""))
    if not job.isdigit() or submitted.get("ended"):
        return None
    while True:
        try:
            state = ask([job]).get(job)
            break
        except NoAnswer:
            time.sleep(LONGEST_SECONDS)  # whether it runs must be known: a second one beside it would spoil both
    return job if state is not None and not (state.ended and state.state not in PASSING) else None


def _submit(run: RunDir, group: Group, after: str | None) -> str:
    group.job.folder.mkdir(exist_ok=True)
    try:
        group.job.file.write_text(sbatch.render(group.job), encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"{group.job.file}: {(error.strerror or str(error)).lower()}; make room and resume") from error
    job = sbatch.submit(group.job, after)
    write_document(_record(group), {"job": job, "submitted": time.time(), "cases": [c.name for c in group.cases]})
    return job


def _look(watched: Sequence["_Watched"], say: Callable[[str], None]) -> bool:
    """One look at all jobs; whether anything has changed."""
    try:
        states = ask([one.id for one in watched])
    except NoAnswer as error:
        say(f"{error}; asking again")
        return False
    moved = [one.look(states.get(one.id)) for one in watched]  # each of them, whatever the first says
    return any(moved)


class _Watched:
    """A job, from its submission to the statuses of its cases."""

    def __init__(self, run: RunDir, group: Group, job: str, say: Callable[[str], None]) -> None:
        self.id = job
        self.over = False
        self._run = run
        self._group = group
        self._say = say
        self._begun = time.time()
        self._told = ""
        self._read = 0
        self._end_seen: float | None = None

    def look(self, state: JobState | None) -> bool:
        """Take what Slurm said of it (None: nothing); whether something has changed."""
        moved = self._relay()
        if state is not None and state.sentence != self._told:
            self._told, moved = state.sentence, True
            self._say(f"{self._group.job.name}: {state.sentence}")
        if state is not None and not state.ended:
            self._end_seen = None
            return moved
        now = time.monotonic()
        self._end_seen = now if self._end_seen is None else self._end_seen
        known = state is not None and state.state not in PASSING
        needed = 0.0 if known else PASSING_SECONDS if state is not None else SETTLE_SECONDS
        if now - self._end_seen >= needed:
            self._settle(state or ask_books(self.id))
        return True

    def _relay(self) -> bool:
        """Pass on what the job has printed since."""
        try:
            with self._group.job.output(self.id).open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return False
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            self._say(f"  {line}")
        return bool(whole)

    def _settle(self, state: JobState | None) -> None:
        self._relay()
        self.over = True
        ended = state.state if state is not None else "gone"
        write_document(_record(self._group), {**read_document(_record(self._group)), "ended": ended})
        for case in self._group.cases:
            self._close(case, state)

    def _close(self, case: Case, state: JobState | None) -> None:
        """A case that has no status of this job, or only that it was interrupted, gets one that says why."""
        folder = self._run.case(case.name)
        latest = folder.latest()
        status = latest[1] if latest is not None else None
        if status is not None and status.phase != "interrupted":
            return
        attempt = latest[0] if latest is not None else folder.new_attempt()
        why = state.sentence.replace(" is ", " ended as ", 1) if state is not None else f"Slurm job {self.id} is gone"
        nothing = " before the case began" if latest is None else ""
        seconds = status.seconds if status is not None else max(0.0, time.time() - self._begun)
        self._run.write_status(
            attempt,
            Status(
                "timeout" if state is not None and state.state == "TIMEOUT" else "failed",
                "job",
                None,
                seconds,
                f"{why}{nothing}",
                f"see {self._group.job.output(self.id)}, then: assay run --resume {self._run.path}",
            ),
        )
