"""The local launcher: torchrun on this host, with a time limit, under a lifeline.

`render` is pure: `assay plan` prints what `run` starts.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from assay import machine
from assay.beacon import FOLDER_VARIABLE, Diagnosis, Reading, diagnose, memory_folder, process_states, read_beacons
from assay.errors import SENTENCE_MARK, BadInput, RunFailed
from assay.hang_watch import collect_stacks, sweep
from assay.launchers.lifeline import adopt_orphans, end_descendants
from assay.options.base import ScriptOptions, command_line
from assay.scripts import script_path

LOOK_SECONDS = 10.0  # at most so long before the time limit the beacons are read once, to see later who moved since


@dataclass(frozen=True)
class Command:
    """What is started: argv, and the variables set on top of the environment."""

    argv: list[str]
    env: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    sentence: the first error sentence that a rank printed. At a time limit also stacks, the files with the ranks' stacks,
    and diagnosis: where the ranks were, None if they have told nothing.
    """

    exit_code: int
    timed_out: bool
    seconds: float
    sentence: str | None
    stacks: list[Path] = field(default_factory=list)
    diagnosis: Diagnosis | None = None


def render(script: str, options: ScriptOptions, world: int, port: int | None, env: Mapping[str, str]) -> Command:
    """The command for `world` ranks on this host. `options.out` is where the records go."""
    meeting = ["--standalone"] if port is None else ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    argv = [machine.python(), "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(world)]
    # Behind "--" torchrun leaves the script's own options alone.
    argv += ["--", str(script_path(script)), *command_line(options)]
    threads = env.get("OMP_NUM_THREADS") or str(max(1, machine.usable_cores() // world))
    return Command(argv, {"OMP_NUM_THREADS": threads, "ASSAY_RUN": "1", "PYTHONUNBUFFERED": "1"})


def check_port(port: int | None) -> None:
    """Raise BadInput if the rendezvous port that the user asked for is taken."""
    if port is None:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadInput(
                f"port {port}: {(error.strerror or str(error)).lower()}; give a free one, or none"
            ) from error


def run(command: Command, attempt: Path, limit: float, keep_fd: int | None, on_line: Callable[[str], None]) -> Outcome:
    """Run to the end or the limit (s). stdout.log and stderr.log go to `attempt`; each stdout line also to `on_line`.

    keep_fd: a descriptor that stays open as long as anything of the command lives. Raises RunFailed if a log cannot be
    written. On any exception (Ctrl-C included) everything started is ended first.
    """
    begun = time.monotonic()
    before = psutil.Process().children(recursive=True)
    adopt_orphans()
    beacons = _beacon_folder()
    reading, writing = os.pipe()
    argv = [machine.python(), "-m", "assay.launchers.lifeline", str(reading), *command.argv]
    passed = (reading,) if keep_fd is None else (reading, keep_fd)
    told = _Told()
    logs: list[_Log] = []
    stacks: list[Path] = []
    diagnosis: Diagnosis | None = None
    timed_out = False
    lifeline: subprocess.Popen[bytes] | None = None
    try:
        lifeline = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **command.env, FOLDER_VARIABLE: str(beacons)},
            pass_fds=passed,
            start_new_session=True,
        )
        logs.append(_Log(lifeline.stdout, attempt / "stdout.log", on_line))
        logs.append(_Log(lifeline.stderr, attempt / "stderr.log", told.hear))
        earlier = _outlasts(lifeline, limit, beacons)
        if earlier is not None:
            timed_out = True
            diagnosis = _diagnose(lifeline.pid, limit, beacons, earlier)
            stacks = collect_stacks(attempt)
    finally:
        os.close(reading)
        os.close(writing)
        if lifeline is not None:
            lifeline.wait()
        # Only a lifeline that was killed leaves something behind; its orphans are ours then.
        end_descendants(spared=before)
        refusals = [refusal for log in logs if (refusal := log.finish())]
        shutil.rmtree(beacons, ignore_errors=True)
    if refusals:
        raise RunFailed(refusals[0])
    return Outcome(lifeline.returncode, timed_out, time.monotonic() - begun, told.sentence, stacks, diagnosis)


def _beacon_folder() -> Path:
    sweep(memory_folder())
    try:
        return Path(tempfile.mkdtemp(prefix="assay-", dir=memory_folder()))
    except OSError as error:
        raise RunFailed(
            f"{memory_folder()}: {(error.strerror or str(error)).lower()}; make room there, it holds where each rank is"
        ) from error


def _outlasts(lifeline: "subprocess.Popen[bytes]", limit: float, beacons: Path) -> list[Reading] | None:
    """Wait for the end; None if it came within `limit` s, else the beacons as they were shortly before the limit."""
    try:
        lifeline.wait(limit - _watched(limit))
        return None
    except subprocess.TimeoutExpired:
        earlier = read_beacons(beacons)
    try:
        lifeline.wait(_watched(limit))
        return None
    except subprocess.TimeoutExpired:
        return earlier


def _watched(limit: float) -> float:
    return min(LOOK_SECONDS, limit / 10)


def _diagnose(lifeline: int, limit: float, beacons: Path, earlier: list[Reading]) -> Diagnosis | None:
    readings = read_beacons(beacons)
    try:
        alive = {process.pid for process in psutil.Process(lifeline).children(recursive=True)}
    except psutil.NoSuchProcess:
        return None  # it ended in the very moment of the time limit
    return diagnose(readings, process_states(readings, alive), _watched(limit), earlier)


class _Told:
    """What stderr says about a failure: the first sentence of a rank of ours, and the first rank that a signal ended.

    torchrun lists every rank's end. Those that it ended itself have SIGTERM, so another signal came from outside; its
    own "root cause" goes by the second and may name a rank that only lost its peer.
    """

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._rank = ""
        self._killed: list[str] = []

    def hear(self, line: str) -> None:
        """Take one line of stderr."""
        if line.startswith(SENTENCE_MARK):
            self._sentences.append(line.removeprefix(SENTENCE_MARK).strip())
        elif match := re.match(r"\s+rank\s+: (\d+) \(local_rank", line):
            self._rank = match[1]
        elif (match := re.match(r"\s+exitcode\s+: -(\d+) \(pid", line)) and int(match[1]) != signal.SIGTERM:
            name = _signal_name(int(match[1]))
            self._killed.append(f"rank {self._rank} was killed by signal {match[1]} ({name})")

    @property
    def sentence(self) -> str | None:
        """Why it failed. A rank that was killed says nothing, and its peers' complaints are only the consequence."""
        return next(iter([*self._killed, *self._sentences]), None)


def _signal_name(number: int) -> str:
    if number == signal.SIGKILL:
        return "SIGKILL: by hand, or by the kernel when memory ran out"
    return signal.Signals(number).name if number in list(signal.Signals) else "unknown"


class _Log(threading.Thread):
    """Copies a pipe to a file, line by line. A full disk must not stop the reading, or the ranks would block."""

    def __init__(self, pipe: IO[bytes] | None, path: Path, on_line: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._path = path
        self._on_line = on_line
        self._refusal: str | None = None
        self.start()

    def run(self) -> None:
        if self._pipe is None:
            return
        with self._pipe, contextlib.ExitStack() as files:
            file: IO[bytes] | None = None
            try:
                file = files.enter_context(self._path.open("wb", buffering=0))
            except OSError as error:
                self._refuse(error)
            for line in self._pipe:
                if file is not None and self._refusal is None:
                    try:
                        file.write(line)
                    except OSError as error:
                        self._refuse(error)
                # Whoever listens (a closed terminal, say) must not stop the reading either.
                with contextlib.suppress(Exception):
                    self._on_line(line.decode("utf-8", "replace").rstrip("\n"))

    def _refuse(self, error: OSError) -> None:
        self._refusal = f"{self._path}: {(error.strerror or str(error)).lower()}; make room and run the folder again"

    def finish(self) -> str | None:
        """Wait for the pipe's end; what the disk refused, if it did."""
        self.join()
        return self._refusal
