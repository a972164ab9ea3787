"""The rank's side of the sensors: one sampling process a host, started and ended by local rank 0.

Nothing that happens to it may cost the rank: it is not waited for at the start, at the end only for a moment, and a
failure is a record.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from assay.errors import AssayError, BadInput
from assay.machine import clock_id
from assay.placement import Placement
from assay.recorder import Recorder

VARIABLE = "ASSAY_SENSORS"
END_SECONDS = 2.0  # longest wait for the last block


class Sidecar:
    """The process, or the reason why there is none."""

    def __init__(self, process: "subprocess.Popen[bytes] | None", failure: str | None = None) -> None:
        self._process = process
        self._failure = failure

    def stop(self, recorder: Recorder | None) -> None:
        """End the process, wait at most 2 s for its last block, and record how it failed, if it did."""
        if self._process is not None:
            self._failure = _end(self._process)
            self._process = None
        if self._failure and recorder is not None:
            with contextlib.suppress(AssayError):  # a full disk is told by whoever has results to write
                recorder.block("sensor_note", "1", [None], reason=self._failure)
        self._failure = None


def start_sidecar(out: Path | None, place: Placement, device: str, device_name: str, env: Mapping[str, str]) -> Sidecar:
    """Start sampling into `out`, where `place` is the host's first rank and ASSAY_SENSORS allows it.

    device, device_name: the rank's. Raises BadInput if ASSAY_SENSORS is neither `on` nor `off`.
    """
    wanted = env.get(VARIABLE, "on")
    if wanted not in ("on", "off"):
        raise BadInput(f"environment: {VARIABLE}={wanted!r} should be 'on' or 'off'")
    if out is None or wanted == "off" or place.local_rank != 0:
        return Sidecar(None)
    argv = command(out / f"sensors-{place.rank:05d}.jsonl", place, device, device_name)
    try:
        return Sidecar(
            subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,  # its end tells the process that this rank is gone
                stdout=subprocess.DEVNULL,  # the rank's own would keep a launcher waiting that reads it to the end
                stderr=subprocess.PIPE,
                close_fds=True,
            )
        )
    except OSError as error:
        return Sidecar(None, f"the sensors' process cannot be started: {(error.strerror or str(error)).lower()}")


def command(out: Path, place: Placement, device: str, device_name: str) -> list[str]:
    """The argv that samples into the file `out` until this process ends or closes its standard input."""
    header = {
        "rank": place.rank,
        "world": place.world,
        "local_rank": place.local_rank,
        "local_world": place.local_world,
        "host": platform.node(),
        "clock_id": clock_id(),
        "device": device,
        "device_name": device_name,
        "backend": "none",
    }
    argv = [sys.executable, "-S", str(Path(__file__).with_name("__main__.py"))]
    argv += [f"--out={out}", f"--parent={os.getpid()}", f"--header={json.dumps(header)}"]
    # Without site-packages the process would not find the one optional package that it may need.
    spec = find_spec("pynvml")
    if spec is not None and spec.origin is not None:
        argv.append(f"--packages={Path(spec.origin).parents[1 if spec.submodule_search_locations else 0]}")
    return argv


def _end(process: "subprocess.Popen[bytes]") -> str | None:
    """End the process; the sentence of its failure, if it failed."""
    if process.stdin is not None:
        process.stdin.close()
    began = time.monotonic()
    try:
        process.wait(END_SECONDS)
        late = None
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        late = f"the sensors' process did not end within {time.monotonic() - began:.0f} s"
    said = _last_line(process.stderr)
    if late or process.returncode == 0:
        return late
    if process.returncode == -14:  # SIGALRM, which it sets before each reading
        return "a sensor did not answer, so the sensors' process was ended"
    return f"the sensors' process ended with exit code {process.returncode}" + (f": {said}" if said else "")


def _last_line(pipe: IO[bytes] | None) -> str:
    if pipe is None:
        return ""
    with pipe:
        os.set_blocking(pipe.fileno(), False)
        lines = (pipe.read() or b"").decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
