"""What a launched command says: its streams into files, and the one sentence that tells why it failed."""

import contextlib
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from assay.errors import SENTENCE_MARK

_SRUN_ENDS = (
    "Killed",
    "Segmentation fault",
    "Aborted",
    "Bus error",
    "Out Of Memory",
)  # not Terminated: srun's own doing


class Told:
    """What stderr says about a failure: the first sentence of a rank of ours, and the first rank that a signal ended.

    torchrun lists every rank's end. Those that it ended itself have SIGTERM, so another signal came from outside; its
    own "root cause" goes by the second and may name a rank that only lost its peer.
    """

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._rank = ""
        self._killed: list[str] = []
        self._lost: list[str] = []
        self._refused: list[str] = []

    def hear(self, line: str) -> None:
        """Take one line of stderr."""
        if line.startswith(SENTENCE_MARK):
            self._sentences.append(line.removeprefix(SENTENCE_MARK).strip())
        elif match := re.match(r"\s+rank\s+: (\d+) \(local_rank", line):
            self._rank = match[1]
        elif (match := re.match(r"\s+exitcode\s+: -(\d+) \(pid", line)) and int(match[1]) != signal.SIGTERM:
            name = _signal_name(int(match[1]))
            self._killed.append(f"rank {self._rank} was killed by signal {match[1]} ({name})")
        elif match := re.match(r"mpirun noticed that process rank (\d+) .* on node (\S+) exited on signal (\d+)", line):
            self._killed.append(f"rank {match[1]} on {match[2]} was killed by signal {match[3]}")
        elif match := re.match(rf"srun: error: (\S+): tasks? (\S+): ({'|'.join(_SRUN_ENDS)})", line):
            # A task is a rank, or one host's torchrun.
            self._killed.append(f"task {match[2]} on {match[1]} ended by a signal ({match[3]})")
        elif match := re.match(r"srun: (?:error|fatal): ((?:Unable|Cannot|Invalid|Requested) .*)", line):
            self._refused.append(f"srun: {match[1]}")
        elif match := re.match(r"srun: error: (Node failure on \S+)", line):
            self._lost.append(match[1].replace("Node", "node"))

    @property
    def sentence(self) -> str | None:
        """Why it failed. A rank that was killed says nothing, and its peers' complaints are only the consequence."""
        return next(iter([*self._lost, *self._killed, *self._sentences, *self._refused]), None)


def _signal_name(number: int) -> str:
    if number == signal.SIGKILL:
        return "SIGKILL: by hand, or by the kernel when memory ran out"
    return signal.Signals(number).name if number in list(signal.Signals) else "unknown"


class Log(threading.Thread):
    """Copies a pipe to a file, line by line. A full disk must not stop the reading, or the ranks would block."""

    def __init__(self, pipe: IO[bytes] | None, path: Path, on_line: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._path = path
        self._on_line = on_line
        self._refusal: str | None = None
        self.start()

    def run(self) -> None:
        """Copy until the pipe ends."""
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
