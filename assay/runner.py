"""A suite becomes cases, launches and a run folder. Run again, it finishes what is unfinished."""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from assay import ceiling_cache, machine
from assay.errors import BadInput, RunFailed
from assay.launchers.choice import choose_launcher, launcher_on_paper
from assay.launchers.job_state import NoAnswer, ask
from assay.launchers.ports import check_port
from assay.launchers.protocol import Command, Job, Launcher
from assay.options.base import command_line
from assay.outcomes import judge
from assay.progress import parse_progress
from assay.rundir import RUNNER, IsGone, RunDir, Status, write_document
from assay.scripts import script_path
from assay.suite import Case, Suite, build_suite, layout_of
from assay.time_left import TimeLeft

if TYPE_CHECKING:
    from assay.doctor.checkup import Checkup


class Watcher(Protocol):
    """Who is told how a run goes. `left`: seconds left as far as they can be known."""

    def case_starts(self, case: Case, number: int, total: int, attempt: int) -> None:
        """A case is launched."""

    def case_moves(self, case: Case, done: int, total: int, text: str, left: float | None) -> None:
        """A case says how far it is."""

    def case_ends(self, case: Case, status: Status, attempt: Path) -> None:
        """A case has its status."""

    def case_kept(self, case: Case) -> None:
        """A case had passed before and is not run again."""


@dataclass(frozen=True)
class Plan:
    """One case of a plan: what would be started, exactly."""

    case: Case
    command: Command


def new_run_path(name: str, parent: Path) -> Path:
    """`<parent>/<name>-<local time>`, with a number behind it if that is taken."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = parent / stem, 2
    while path.exists():
        path, number = parent / f"{stem}-{number}", number + 1
    return path


def plan(suite: Suite, run_path: Path) -> list[Plan]:
    """The command of every case, as a run into `run_path` would start it. Nothing is started or written."""
    launcher = launcher_on_paper(suite.file, os.environ)
    return [
        Plan(
            case,
            launcher.render(
                _job(suite, case, run_path / "cases" / case.name / "attempt-1"), suite.file.port, os.environ
            ),
        )
        for case in suite.cases
    ]


def _job(suite: Suite, case: Case, attempt: Path) -> Job:
    options = case.options.model_copy(update={"out": attempt.resolve()})
    program = (str(script_path(case.script)), *command_line(options))
    return Job(case.name, program, layout_of(case, suite.file), attempt)


def create_run(suite: Suite, path: Path, lock: str = RUNNER, *, is_gone: IsGone | None = None) -> RunDir:
    """Make the run folder with everything a reader needs to know about suite, code, versions and machine."""
    check_port(suite.file.port)
    return RunDir.create(
        path,
        {
            "suite": suite.document(),
            "source": suite.source,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "cases": [case.name for case in suite.cases],
            "code": machine.code(),
            "software": machine.software(),
            "host": machine.host(),
            "environment": machine.environment(os.environ),
        },
        lock,
        is_gone=is_gone,
    )


def resume_run(path: Path) -> tuple[RunDir, Suite]:
    """Take up an unfinished run folder: the suite is the one in its run.json. Raises BadInput if it cannot be.

    The caller locks it.
    """
    run = RunDir.open(path)
    if "imported" in run.document():
        raise BadInput(f"{path}: was imported from another tool's output; there is nothing to resume")
    suite = build_suite(run.document().get("suite"), f"{path}/run.json")
    return run, suite


def owner_is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the runner on another host that owns a folder has ended, as Slurm tells: its job is ours, or is over."""
    job = owner.get("slurm_job")
    if not isinstance(job, str) or not job.isdigit():
        return False
    if job == os.environ.get("SLURM_JOB_ID"):
        # This very job: requeued, or running this on several of its hosts at once.
        return owner.get("slurm_restarts") != os.environ.get("SLURM_RESTART_COUNT")
    try:
        state = ask([job]).get(job)
    except NoAnswer:
        return False
    return state is None or state.ended


def examine(run: RunDir, suite: Suite) -> "Checkup | None":
    """Whether the machine is fit to be measured; kept in the run folder. None if the suite does not want to know, or if
    every case has passed before.

    Raises KeyboardInterrupt on Ctrl-C and RunFailed when the folder cannot be written.
    """
    # Where ranks run in a container, what this host lacks says nothing.
    inside = machine.node_python(os.environ) != machine.python()
    if inside or not suite.file.doctor or all(run.case(case.name).passed() for case in suite.cases):
        return None
    devices = {case.options.device for case in suite.cases}
    from assay.doctor import checkup as doctor

    try:
        checkup = doctor.examine(run.path, devices.pop() if len(devices) == 1 else "auto")
    except BadInput:
        return None  # torch offers no such device: every case is going to say so, and leave a record of it
    run.add_checkup(checkup.document())
    return checkup


def run_cases(
    run: RunDir,
    suite: Suite,
    watcher: Watcher,
    *,
    checkup: "Checkup | None" = None,
    fresh: bool = False,
) -> bool:
    """Run every case that has not passed, on the hosts that this process has; whether all have passed in the end.

    checkup: what the doctor found. fresh: measure ceilings anew even where lately measured ones are kept.

    Raises KeyboardInterrupt on Ctrl-C and RunFailed when the folder cannot be written, both with the folder in a true
    state: whatever had ended has its status, and whatever was under way is marked or runs again.
    """
    try:
        launcher = choose_launcher(suite.file, os.environ)
        launcher.meeting_port(suite.file.port)
        for case in suite.cases:
            nodes = layout_of(case, suite.file).nodes
            have = max(1, len(launcher.hosts))
            if nodes > have:
                raise BadInput(f"case {case.name!r}: needs {nodes} hosts, but there are {have} here; ask for more")
        clock = TimeLeft(suite)
        passed = True
        fresh = fresh or not _all_kept(run, suite, checkup)
        for number, case in enumerate(suite.cases, 1):
            folder = run.case(case.name)
            if folder.passed() is not None:
                watcher.case_kept(case)
                clock.ended(case, 0.0)
                continue
            write_document(folder.path / "case.json", case.document())
            attempt = folder.new_attempt()
            watcher.case_starts(case, number, len(suite.cases), len(folder.attempts()))
            case = case if _is_here(case, suite, launcher) else replace(case, reuse_within=0.0)
            identity = _identity(case, suite, checkup) if case.reuse_within else {}
            status = None if fresh else _reuse(run, case, attempt, identity)
            if status is None:
                status = _run_case(run, suite, case, launcher, attempt, watcher, clock)
                refusal = ceiling_cache.keep(case, identity, attempt, os.environ, checkup) if _passed(status) else None
                if refusal:
                    status = replace(status, reason=refusal)
                    run.write_status(attempt, status)
            watcher.case_ends(case, status, attempt)
            clock.ended(case, status.seconds)
            passed = passed and _passed(status)
        return passed
    finally:
        run.unlock()


def _all_kept(run: RunDir, suite: Suite, checkup: "Checkup | None") -> bool:
    """Whether every ceiling that is still wanted was measured lately: ceilings of several times do not go together."""
    wanted = [case for case in suite.cases if case.reuse_within and run.case(case.name).passed() is None]
    return all(ceiling_cache.recall(case, _identity(case, suite, checkup), os.environ) for case in wanted)


def _identity(case: Case, suite: Suite, checkup: "Checkup | None") -> dict[str, Any]:
    launched = {"launcher": suite.file.launcher, "spawn": suite.file.spawn}
    return {**ceiling_cache.identity(case, os.environ, checkup), **launched}


def _is_here(case: Case, suite: Suite, launcher: Launcher) -> bool:
    """Whether a case's ranks are on this host alone: only of this host is it known that it is the same one again."""
    names = {name.partition(".")[0] for name in launcher.hosts[:1]}
    return layout_of(case, suite.file).nodes == 1 and names <= {platform.node().partition(".")[0]}


def _passed(status: Status) -> bool:
    return status.state == "passed"


def _reuse(run: RunDir, case: Case, attempt: Path, identity: Mapping[str, Any]) -> Status | None:
    """Ceilings that were measured lately on this machine by this code, put into the attempt; None if there are none."""
    begun = time.monotonic()
    kept = ceiling_cache.recall(case, identity, os.environ)
    if kept is None or not ceiling_cache.copy_to(kept, attempt):
        return None
    status = Status("passed", "reused", None, time.monotonic() - begun, kept.sentence)
    run.write_status(attempt, status)
    return status


def _run_case(
    run: RunDir,
    suite: Suite,
    case: Case,
    launcher: Launcher,
    attempt: Path,
    watcher: Watcher,
    clock: TimeLeft,
) -> Status:
    job = _job(suite, case, attempt)
    try:
        command = launcher.render(job, launcher.meeting_port(suite.file.port), os.environ)
    except BadInput as error:  # it was well when the run began: somebody has taken the port since
        status = Status("failed", "launch", None, 0.0, str(error), f"assay run --resume {run.path}")
        run.write_status(attempt, status)
        return status
    # Each attempt says by what it was made: a resumed run may have met other code or another host.
    provenance = {"revision": machine.code()["revision"], "host": platform.node(), "software": machine.software()}
    if suite.file.launcher == "slurm":  # the run may have been begun on a login node
        provenance["machine"] = machine.host()
    write_document(
        attempt / "command.json",
        {"argv": command.argv, "env": command.env, "world": case.world, "provenance": provenance},
    )
    begun = time.monotonic()

    def on_line(line: str) -> None:
        moved = parse_progress(line)
        if moved is not None:
            done, total, text = moved
            watcher.case_moves(
                case, done, total, text, clock.left(case, time.monotonic() - begun, done / max(total, 1))
            )

    try:
        outcome = launcher.submit(command, job, run.lock_fd, on_line).watch(case.time_limit)
        status = judge(case, attempt, outcome, launcher.collect(job))
    except KeyboardInterrupt as interruption:
        seconds = time.monotonic() - begun
        whom = " ".join(map(str, interruption.args)) or "the user"
        status = Status(
            "failed", "interrupted", None, seconds, f"interrupted by {whom}", f"assay run --resume {run.path}"
        )
        run.write_status(attempt, status)
        raise
    except RunFailed as error:
        status = Status("failed", "records", None, time.monotonic() - begun, str(error), "make room and resume the run")
    run.write_status(attempt, status)
    return status
