"""Taking turns: sides that live in processes of their own, of which one works while the others sleep.

In processes of their own each side has its own allocator, threads and process group, as its users do. A turn is some
steps; every rank sleeps in a read between its turns, so what is timed has the machine for itself.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from assay.clock import now
from assay.errors import SENTENCE_MARK, RunFailed

_ADDRESS, _SIDE = "ASSAY_TURNS", "ASSAY_SIDE"
SET_UP_SECONDS, TURN_SECONDS = 240.0, 120.0


def shared_folder() -> Path:
    """A folder that all ranks of this comparison see, gone afterwards."""
    return Path(os.environ[_ADDRESS]).parent


class Turns:
    """A rank's end: it waits for its first turn, and tells at the end of each step what the loss was."""

    def __init__(self, steps: int, rank: int) -> None:
        self._steps = steps
        self._losses: list[torch.Tensor | float] = []
        self._begun = 0.0
        link = socket.socket(socket.AF_UNIX)
        link.connect(os.environ[_ADDRESS])
        self._stream = link.makefile("rw")
        self._tell({"side": os.environ[_SIDE], "rank": rank})

    def wait(self) -> None:
        """Sleep until it is this side's turn. The process ends here if there is none any more."""
        if self._stream.readline().strip() != "go":
            sys.stdout.flush()
            os._exit(0)
        self._begun = now()

    def end_of_step(self, loss: torch.Tensor | float) -> None:
        """A step has ended with this loss (of this rank's part, a mean). At the end of a turn, wait for the next one."""
        self._losses.append(loss)
        if len(self._losses) < self._steps:
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        seconds = now() - self._begun
        self._tell({"seconds": seconds, "losses": [float(one) for one in self._losses]})
        self._losses.clear()
        self.wait()

    def _tell(self, what: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(what) + "\n")
        self._stream.flush()


@dataclass(frozen=True)
class Turn:
    """seconds: of the slowest rank. losses: of each step, the mean over ranks."""

    seconds: float
    losses: list[float]


class Arena:
    """Starts sides and gives them turns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._links: dict[str, list[Any]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(SET_UP_SECONDS)
        self._listener.bind(str(folder / "turns"))
        self._listener.listen()

    def enter(self, side: str, command: list[str], ranks: int, environment: Mapping[str, str]) -> None:
        """Start a side and wait until its ranks are ready. Raises RunFailed, with its last words, if they do not come."""
        log = self._folder / f"{side}.log"
        told = {**os.environ, **environment, _ADDRESS: str(self._folder / "turns"), _SIDE: side}
        with log.open("wb") as output:
            self._processes[side] = subprocess.Popen(command, env=told, stdout=output, stderr=subprocess.STDOUT)
        self._links[side] = []
        deadline = now() + SET_UP_SECONDS
        self._listener.settimeout(1.0)
        while len(self._links[side]) < ranks:
            if self._processes[side].poll() is not None or now() > deadline:
                raise RunFailed(f"{side} did not get ready: {self._last_words(side)}")
            with contextlib.suppress(TimeoutError):
                link, _ = self._listener.accept()
                link.settimeout(TURN_SECONDS)
                stream = link.makefile("rw")
                stream.readline()
                self._links[side].append(stream)

    def turn(self, side: str) -> Turn:
        """Let all ranks of this side train their steps. Raises RunFailed, with its last words, if one of them ends."""
        for stream in self._links[side]:
            stream.write("go\n")
            stream.flush()
        try:
            told = [json.loads(stream.readline()) for stream in self._links[side]]
        except (ValueError, OSError):
            raise RunFailed(f"{side} ended in its turn: {self._last_words(side)}") from None
        losses = [fmean(one) for one in zip(*(rank["losses"] for rank in told), strict=True)]
        return Turn(max(rank["seconds"] for rank in told), losses)

    def close(self) -> None:
        """Tell all sides to go, and end who does not."""
        for streams in self._links.values():
            for stream in streams:
                with contextlib.suppress(OSError):
                    stream.write("end\n")
                    stream.flush()
        for process in self._processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._listener.close()

    def _last_words(self, side: str) -> str:
        lines = (self._folder / f"{side}.log").read_text(errors="replace").splitlines()
        sentences = [line for line in lines if line.startswith(SENTENCE_MARK)]
        return " | ".join(sentences or lines[-8:]) or "it said nothing"


@contextlib.contextmanager
def arena() -> Iterator[Arena]:
    """An arena in a folder of its own; all sides are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        made = Arena(Path(folder))
        try:
            yield made
        finally:
            made.close()
