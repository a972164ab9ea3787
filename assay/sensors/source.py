"""What a source of readings is, and the source that most others are made of: numbers in files of /sys and /proc."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from assay.record import Tags


@dataclass(frozen=True, eq=False)
class Gauge:
    """One thing that can be read again and again. Made once; two gauges are the same only if they are one object.

    `metric` and `unit` as in a record's block; `tags` name at least the `device` that it is read of.
    """

    metric: str
    unit: str
    tags: Tags


Reading = tuple[Gauge, float | None]
"""A gauge and its value in its unit; None where it could not be read this time."""


class Source(Protocol):
    """Something that gives readings. All its readings of one moment share one stamp."""

    @property
    def name(self) -> str:
        """Short and unique; it stands in the tag `source`."""

    @property
    def period(self) -> float:
        """Seconds that should lie between two readings; 0 for every tick."""

    @property
    def about(self) -> Mapping[str, Mapping[str, str]]:
        """What is known of its devices once and for all: device → product name, uuid …"""

    def read(self) -> list[Reading]:
        """The readings of this moment. What cannot be read is None or left out; no error is raised for it."""

    def notes(self) -> list[str]:
        """Sentences for people that have come up since the last call."""

    def close(self) -> None:
        """Let go of files, libraries and processes."""


class _Number:
    """One file that holds one whole number, kept open."""

    __slots__ = ("descriptor", "divide", "gauge", "last", "multiply", "turns", "wraps_at")

    def __init__(self, gauge: Gauge, descriptor: int, multiply: int, divide: int, wraps_at: int) -> None:
        self.gauge = gauge
        self.descriptor = descriptor
        self.multiply = multiply
        self.divide = divide
        self.wraps_at = wraps_at
        self.last = self.turns = 0

    def read(self) -> float | None:
        """The number in the gauge's unit; None if the file does not give one now."""
        try:
            # The kernel makes a fresh text whenever reading begins at 0: no need to open the file again.
            raw = int(os.pread(self.descriptor, 64, 0))
        except (OSError, ValueError):
            return None
        if self.wraps_at:
            if raw < self.last:
                self.turns += 1
            self.last = raw
            raw += self.turns * self.wraps_at
        raw *= self.multiply
        return raw if self.divide == 1 else raw / self.divide


class Files:
    """A source of numbers, each in a file of its own (sysfs). The files stay open; a tick costs one pread each."""

    def __init__(self, name: str, period: float = 0.0) -> None:
        self.name = name
        self.period = period
        self.about: dict[str, dict[str, str]] = {}
        self._numbers: list[_Number] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, path: Path, gauge: Gauge, *, multiply: int = 1, divide: int = 1, wraps_at: int = 0) -> str | None:
        """Read `path` from now on; what stands in the way if it cannot be read as a whole number.

        Value = raw × multiply / divide. wraps_at: raw units after which the file's counter starts again at 0; the
        readings go on rising then, as long as no two wraps lie between two readings.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return f"{path}: {(error.strerror or str(error)).lower()}"
        number = _Number(gauge, descriptor, multiply, divide, wraps_at)
        if number.read() is None:
            os.close(descriptor)
            return f"{path}: holds no number"
        self._numbers.append(number)
        return None

    def read(self) -> list[Reading]:
        """Every file's number; None for one that has gone or does not answer."""
        return [(number.gauge, number.read()) for number in self._numbers]

    def notes(self) -> list[str]:
        """Nothing: a file that cannot be read now is a null sample."""
        return []

    def close(self) -> None:
        """Close the files."""
        for number in self._numbers:
            os.close(number.descriptor)
        self._numbers.clear()


def text_of(path: Path) -> str:
    """The text of a small file without its last newline; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def number_of(path: Path) -> int | None:
    """The whole number in a small file; None if there is none."""
    try:
        return int(text_of(path))
    except ValueError:
        return None
