"""What `assay run` does with a suite: take it up, new or begun before, and see it through, here or as jobs of Slurm's.

A batch job waits for these imports before its first rank starts: what not every run needs is imported where it is used.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console

from assay.console import ConsoleWatcher
from assay.errors import INTERRUPTED_EXIT, BadInput
from assay.launchers.choice import choose_launcher, launch_keys, runs_in_jobs
from assay.launchers.protocol import Launcher
from assay.launchers.sbatch import check_here
from assay.options import SCRIPTS
from assay.options.base import nearest
from assay.planning import refuse_what_cannot_run
from assay.rundir import RUNNER, WATCHER, RunDir
from assay.runner import create_run, examine, new_run_path, owner_is_gone, resume_run, run_cases
from assay.suite import Suite, build_suite, load_suite
from assay.suite_format import Launch


@dataclass(frozen=True)
class Undertaking:
    """A suite and the run folder that it goes into. may_exist: the folder was named; what is there of it is finished."""

    suite: Suite
    path: Path
    begun: bool
    may_exist: bool = False

    def see_through(self, *, fresh: bool) -> bool:
        """Run what has not passed, with its progress on the terminal; whether all has passed in the end.

        Raises SystemExit with a sentence on Ctrl-C and SIGTERM, BadInput and RunFailed as the runner does.
        """
        return self._as_jobs() if runs_in_jobs(self.suite.file, os.environ) else self._here(fresh)

    def _here(self, fresh: bool) -> bool:
        launcher = choose_launcher(self.suite.file, os.environ)  # what it needs must be here before anything is written
        refuse_what_cannot_run(self.suite)
        if self.begun:
            folder = RunDir.open(self.path)
            folder.lock(RUNNER, owner_is_gone)
        else:
            folder = create_run(self.suite, self.path, is_gone=owner_is_gone if self.may_exist else None)
        # Schedulers end a job with SIGTERM: the folder is left in as true a state as by Ctrl-C.
        signal.signal(signal.SIGTERM, _terminated)
        try:
            return self._measure(folder, launcher, fresh)
        finally:
            folder.unlock()

    def _measure(self, folder: RunDir, launcher: Launcher, fresh: bool) -> bool:
        console = _announce(folder)
        with _told(f"interrupted; what was measured is kept, go on with: assay run --resume {folder.path}"):
            if self.suite.file.doctor:
                console.print("looking whether this machine is fit to be measured …", markup=False, highlight=False)
            checkup = examine(folder, self.suite)
            if checkup is not None:
                console.print(f"{checkup.sentence} More: assay doctor", markup=False, highlight=False)
            if self.suite.file.preflight:
                from assay.preflight.launching import look_at_hosts

                look_at_hosts(launcher, self.suite, folder.path)
            with ConsoleWatcher(console) as watcher:
                return run_cases(folder, self.suite, watcher, checkup=checkup, fresh=fresh)

    def _as_jobs(self) -> bool:
        from assay.jobs import check_jobs, run_jobs

        if self.begun:
            check_here()
            folder = RunDir.open(self.path)
            folder.lock(WATCHER)
        else:
            check_jobs(self.suite, self.path)
            folder = create_run(self.suite, self.path, WATCHER, is_gone=owner_is_gone if self.may_exist else None)
        console = _announce(folder)
        with _told(
            f"no longer watching; the jobs go on. Watch again with: assay run --resume {folder.path}, "
            f"end them with: assay cancel {folder.path}"
        ):
            return run_jobs(folder, self.suite, lambda text: console.print(text, markup=False, highlight=False))


def _announce(folder: RunDir) -> Console:
    console = Console(soft_wrap=True)
    console.print(f"run folder: {folder.path}", markup=False, highlight=False)
    return console


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("SIGTERM, as a scheduler sends it (scancel, time limit, requeue)")


@contextmanager
def _told(sentence: str) -> Iterator[None]:
    """An interruption ends the process with this sentence."""
    try:
        yield
    except KeyboardInterrupt:
        print(sentence, file=sys.stderr)
        raise SystemExit(INTERRUPTED_EXIT) from None


def read_suite(name: str, option: Sequence[str], given: Mapping[str, object]) -> Suite:
    """The suite of that name or file, changed by `-o KEY=VALUE`. given: keys of its launch that the command line gives.

    A script such as comms/bench is a suite of one case, on all ranks. Raises BadInput.
    """
    from assay.catalogue import find_suite
    from assay.scoring.baseline import load_profile

    overrides = {}
    for text in option:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadInput(f"-o {text}: expected KEY=VALUE, for example -o steps=20")
        overrides[key] = value
    script = name.removesuffix(".py")
    if script in SCRIPTS:
        short = Path(script).name
        cases = [{"name": short, "script": script, "world": "all"}]
        data = {"assay": 1, "name": short, "description": SCRIPTS[script].synopsis, "cases": cases}
        return build_suite(data, script, None, overrides, lambda file: launch_keys(file, given, os.environ))
    loaded = load_suite(find_suite(name), overrides, lambda file: launch_keys(file, given, os.environ))
    if loaded.file.profile is not None:
        load_profile(loaded.file.profile)  # a name that does not exist must not be found out after hours of measuring
    return loaded


def begin(suite: Suite, out: Path, folder: Path | None) -> Undertaking:
    """A new run in `out`, or in `folder` itself, which is finished if it holds this very run already.

    Raises BadInput if it holds another.
    """
    if folder is None:
        return Undertaking(suite, new_run_path(suite.file.name, out), begun=False)
    if not (folder / "run.json").exists():
        return Undertaking(suite, folder, begun=False, may_exist=True)
    _, there = resume_run(folder)
    if [case.document() for case in there.cases] != [case.document() for case in suite.cases]:
        raise BadInput(f"--folder {folder}: holds a run of another suite, or with other options; give another folder")
    for key in Launch.model_fields:
        began, asked = getattr(there.file, key), getattr(suite.file, key)
        if key != "nodes" and began != asked:  # hosts may be others each time; what runs on them may not
            raise BadInput(f"--folder {folder}: its run began with {key} {began}, not {asked}; give another folder")
    return Undertaking(suite, folder, begun=True)


def go_on(path: Path, names: Sequence[str]) -> Undertaking:
    """A run that has begun; only the cases of these names, if any are given. Raises BadInput if it has no such case."""
    _, suite = resume_run(path)
    known = [case.name for case in suite.cases]
    for name in names:
        if name not in known:
            raise BadInput(f"--case {name}: {path} has no such case{nearest(name, known)}")
    chosen = [case for case in suite.cases if case.name in names] if names else suite.cases
    # The job of a whole suite is not the job of these.
    file = suite.file.model_copy(update={"jobs": "case"}) if names else suite.file
    return Undertaking(replace(suite, cases=chosen, file=file), path, begun=True)
