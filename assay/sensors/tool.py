"""A vendor's own tool as a source: the command in ASSAY_SENSOR_COMMAND.

It runs as long as the case does and prints one JSON object a line, at any pace of its own:

    {"device": "npu0", "power": 301.5, "temperature": 61, "clock": 1.8e9}

`device` is any short name; print only devices that the ranks use. Every other key is a number or null: power (W),
energy (J, a counter), temperature (degC), clock and memory_clock (Hz), utilisation (0 … 1), memory_used (B),
throttled (0 or 1), ecc_corrected and ecc_uncorrected (counters). At each tick the newest line of each device counts,
so a line may be an interval old when it is stamped.
"""

import contextlib
import json
import math
import os
import shlex
import signal
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from assay.sensors.source import Gauge, Reading

if TYPE_CHECKING:
    import subprocess

VARIABLE = "ASSAY_SENSOR_COMMAND"
MOST_MALFORMED = 1000  # lines after which the tool is ended: it is no tool of this kind
MOST_DEVICES = 256
MOST_REFUSED = 20  # keys that are named
_READ_BYTES = 1 << 16

# key → metric, unit, further tags
_KEYS: dict[str, tuple[str, str, dict[str, str]]] = {
    "power": ("power", "W", {}),
    "energy": ("energy", "J", {}),
    "temperature": ("temperature", "degC", {}),
    "clock": ("clock", "Hz", {"domain": "core"}),
    "memory_clock": ("clock", "Hz", {"domain": "memory"}),
    "utilisation": ("utilisation", "1", {}),
    "memory_used": ("memory_used", "B", {}),
    "throttled": ("throttled", "1", {"reason": "told"}),
    "ecc_corrected": ("ecc_corrected", "1", {}),
    "ecc_uncorrected": ("ecc_uncorrected", "1", {}),
}


class Tool:
    """A source: what the tool has printed since the last reading."""

    name = "tool"
    period = 0.0

    def __init__(self, process: "subprocess.Popen[bytes]", command: str) -> None:
        self.about: dict[str, dict[str, str]] = {"tool": {"command": command}}
        self._process = process
        self._output, self._errors = _Lines(process.stdout), _Lines(process.stderr)
        self._complaint = ""
        self._gauges: dict[tuple[str, str], Gauge] = {}
        self._devices: set[str] = set()
        self._refused: set[str] = set()
        self._lines = self._malformed = 0
        self._malformed_gauge = Gauge("malformed_lines", "1", {"device": "tool"})
        self._notes: list[str] = []
        self._running = True

    def read(self) -> list[Reading]:
        """The newest line of each device that has printed one; nothing of a device that has not."""
        if not self._running:
            return []
        newest: dict[str, dict[str, Any]] = {}
        for line in self._output.take():
            self._lines += 1
            item = self._understood(line)
            if item is not None:
                newest[item["device"]] = {**newest.get(item["device"], {}), **item}
        self._complaint = next(reversed(self._errors.take()), self._complaint)  # also keeps its pipe from filling
        readings: list[Reading] = [(self._malformed_gauge, self._malformed)]
        readings += [
            (self._gauge(device, key), value)
            for device, item in newest.items()
            for key, value in item.items()
            if key in _KEYS
        ]
        if self._process.poll() is not None:
            self._ended(f"ended with exit code {self._process.returncode}")
        elif self._malformed >= MOST_MALFORMED:
            self._ended(f"was ended because {self._malformed} of its {self._lines} lines are not what was asked for")
        return readings

    def _understood(self, line: str) -> dict[str, Any] | None:
        try:
            item = json.loads(line)
            problem = self._problem(item)
        except (ValueError, RecursionError):
            problem = "is no JSON"
        if problem is None:
            self._devices.add(item["device"])
            return dict(item)
        if not self._malformed:
            shown = line if len(line) <= 80 else line[:77] + "..."
            self._notes.append(f"{VARIABLE}: a line {problem}: {shown!r}; such lines are counted and left out")
        self._malformed += 1
        return None

    def _problem(self, item: Any) -> str | None:
        if not isinstance(item, dict):
            return "is no JSON object"
        device = item.get("device")
        if not isinstance(device, str) or not 0 < len(device) <= 64:
            return "has no key 'device' with a short text"
        if device not in self._devices and len(self._devices) >= MOST_DEVICES:
            return f"names more than {MOST_DEVICES} devices"
        for key, value in item.items():
            if key in _KEYS and not _is_number(value):
                return f"has for {key!r} neither a number nor null"
            if key not in _KEYS and key != "device" and key not in self._refused and len(self._refused) < MOST_REFUSED:
                self._refused.add(key)
                known = ", ".join(_KEYS)
                self._notes.append(f"{VARIABLE}: key {key[:64]!r} is not known and left out; known: device, {known}")
        return None

    def _gauge(self, device: str, key: str) -> Gauge:
        if (device, key) not in self._gauges:
            metric, unit, tags = _KEYS[key]
            self._gauges[device, key] = Gauge(metric, unit, {"device": device, "part": "accelerator", **tags})
        return self._gauges[device, key]

    def _ended(self, how: str) -> None:
        self._complaint = next(reversed(self._errors.take()), self._complaint)
        said = f"; it said: {self._complaint[:200]}" if self._complaint else ""
        self._notes.append(f"{VARIABLE}: the tool {how} after {self._lines} lines{said}")
        self.close()

    def notes(self) -> list[str]:
        """Keys that are not known, the first malformed line, the tool's end."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """End the tool and whatever it started, at once."""
        if not self._running:
            return
        self._running = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _is_number(value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


class _Lines:
    """Whole lines out of a pipe, as they come; reading never waits."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        self._descriptor = pipe.fileno() if pipe else -1
        os.set_blocking(self._descriptor, False)
        self._rest = b""

    def take(self) -> list[str]:
        """The lines since the last call. A line longer than the pipe is cut, so that it cannot fill the memory."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _READ_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode("utf-8", "replace").strip() for line in lines if line.strip()]


def open_tool(env: Mapping[str, str]) -> Tool | str:
    """Start the command of `env`'s ASSAY_SENSOR_COMMAND, or say why there is none."""
    command = env.get(VARIABLE, "").strip()
    if not command:
        return f"{VARIABLE} is not set"
    try:
        argv = shlex.split(command)
    except ValueError as error:
        return f"{VARIABLE}={command!r} is no command line: {str(error).lower()}"
    import subprocess  # only who has a tool pays for it

    from assay.sensors.parent import die_with_parent

    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # should the sampler be killed, nobody else ends it
        )
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return f"{VARIABLE}: {argv[0]!r} cannot be started ({why.lower()})"
    return Tool(process, command)
