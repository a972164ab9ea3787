"""A command that this process attends: under a lifeline, with a time limit, its streams in the job's folder."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from assay import machine
from assay.beacon import FOLDER_VARIABLE, Diagnosis, Reading, diagnose, memory_folder, process_states, read_beacons
from assay.errors import RunFailed
from assay.hang_watch import STACK_SECONDS, collect_stacks, stack_files, sweep
from assay.launchers.lifeline import adopt_orphans, end_descendants
from assay.launchers.output import Log, Told
from assay.launchers.protocol import Command, Outcome
from assay.placement import tells_of_a_rank
from assay.stack_signal import STACK_SIGNAL

LOOK_SECONDS = 10.0  # at most so long before the time limit the beacons are read once, to see later who moved since
_MARKS = ("SLURM_LABELIO", "SLURM_STDOUTMODE", "SLURM_STDERRMODE")  # would put marks before lines, or lines elsewhere
AFAR_SECONDS = 4.0  # that srun or mpirun may take to end ranks on other hosts; Slurm's own patience is often 5 s


def run(command: Command, folder: Path, limit: float, keep_fd: int | None, on_line: Callable[[str], None]) -> Outcome:
    """Run to the end or the limit (s). stdout.log and stderr.log go to `folder`; each stdout line also to `on_line`.

    keep_fd: a descriptor that stays open as long as anything of the command lives. Raises RunFailed if a log cannot be
    written. On any exception (Ctrl-C included) everything started is ended first.
    """
    return Attended(command, folder, keep_fd, on_line).watch(limit)


class Attended:
    """A command that runs. Constructing it starts it; `watch` must follow."""

    def __init__(self, command: Command, folder: Path, keep_fd: int | None, on_line: Callable[[str], None]) -> None:
        self._folder = folder
        self._afar = command.afar
        self._begun = time.monotonic()
        self._spared = psutil.Process().children(recursive=True)
        adopt_orphans()
        self._beacons = None if command.afar else _beacon_folder()
        self._told = Told()
        self._logs: list[Log] = []
        self._writing: int | None = None
        reading, self._writing = os.pipe()
        grace = AFAR_SECONDS if command.afar else 0.0
        argv = [machine.python(), "-m", "assay.launchers.lifeline", str(reading), str(grace), *command.argv]
        try:
            self._lifeline = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**surroundings(), **command.env, **self._beacon_variable()},
                pass_fds=(reading,) if keep_fd is None else (reading, keep_fd),
                start_new_session=True,
            )
        except BaseException:
            self._clear()
            raise
        finally:
            os.close(reading)
        self._logs.append(Log(self._lifeline.stdout, folder / "stdout.log", on_line))
        self._logs.append(Log(self._lifeline.stderr, folder / "stderr.log", self._told.hear))

    def _beacon_variable(self) -> dict[str, str]:
        return {FOLDER_VARIABLE: str(self._beacons)} if self._beacons else {}

    def watch(self, limit: float) -> Outcome:
        """See protocol.Running. Raises RunFailed if a log cannot be written."""
        stacks: list[Path] = []
        diagnosis: Diagnosis | None = None
        timed_out = False
        try:
            earlier = self._outlasts(limit)
            if earlier is not None:
                timed_out = True
                diagnosis = self._diagnose(limit, earlier)
                stacks = self._ask_for_stacks()
        finally:
            self.cancel()
            self._lifeline.wait()
            # Only a lifeline that was killed leaves something behind; its orphans are ours then. srun and mpirun have been
            # asked to end by that, and need their time for the ranks on other hosts.
            if self._afar:
                below = psutil.Process().children(recursive=True)
                psutil.wait_procs([process for process in below if process not in self._spared], AFAR_SECONDS)
            end_descendants(spared=self._spared)
            refusals = [refusal for log in self._logs if (refusal := log.finish())]
            self._clear()
        if refusals:
            raise RunFailed(refusals[0])
        seconds = time.monotonic() - self._begun
        return Outcome(self._lifeline.returncode, timed_out, seconds, self._told.sentence, stacks, diagnosis)

    def cancel(self) -> None:
        """See protocol.Running."""
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    def _clear(self) -> None:
        self.cancel()
        if self._beacons is not None:
            shutil.rmtree(self._beacons, ignore_errors=True)

    def _outlasts(self, limit: float) -> list[Reading] | None:
        """Wait for the end; None if it came within `limit` s, else the beacons as they were shortly before the limit."""
        try:
            self._lifeline.wait(limit - _watched(limit))
            return None
        except subprocess.TimeoutExpired:
            earlier = read_beacons(self._beacons) if self._beacons else []
        try:
            self._lifeline.wait(_watched(limit))
            return None
        except subprocess.TimeoutExpired:
            return earlier

    def _diagnose(self, limit: float, earlier: list[Reading]) -> Diagnosis | None:
        if self._beacons is None:
            return None  # ranks on other hosts watch themselves
        readings = read_beacons(self._beacons)
        try:
            alive = {process.pid for process in psutil.Process(self._lifeline.pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            return None  # it ended in the very moment of the time limit
        return diagnose(readings, process_states(readings, alive), _watched(limit), earlier)

    def _ask_for_stacks(self) -> list[Path]:
        if not self._afar:
            return collect_stacks(self._folder)
        # srun and mpirun pass this signal on to every rank of every host.
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._lifeline.pid).children():
                process.send_signal(STACK_SIGNAL)
        time.sleep(STACK_SECONDS)
        return stack_files(self._folder)


def surroundings() -> dict[str, str]:
    """This process's environment for a command whose output is read: without marks of ranks, and of lines."""
    # Whoever starts ranks says which they are; what an outer launcher said of this process is not for them.
    return {name: value for name, value in os.environ.items() if not (tells_of_a_rank(name) or name in _MARKS)}


def _beacon_folder() -> Path:
    sweep(memory_folder())
    try:
        return Path(tempfile.mkdtemp(prefix="assay-", dir=memory_folder()))
    except OSError as error:
        raise RunFailed(
            f"{memory_folder()}: {(error.strerror or str(error)).lower()}; make room there, it holds where each rank is"
        ) from error


def _watched(limit: float) -> float:
    return min(LOOK_SECONDS, limit / 10)
