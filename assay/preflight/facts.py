"""What one host tells of itself, as it travels to the first host. Types only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

Exchange = tuple[
    float, float, float, float
]  # wall times (s): asked (own), heard and answered (first host's), back (own)


@dataclass(frozen=True)
class Code:
    """Which code runs there. sources, changes: SHA-256 of this suite's sources and of its uncommitted diff.

    revision, changes: None outside a checkout.
    """

    version: str
    path: str
    revision: str | None
    sources: str
    changes: str | None


@dataclass(frozen=True)
class Devices:
    """Accelerators of a host. count: None if nothing tells; source: what was counted, or why nothing could be.

    doubt: what speaks against the count.
    """

    count: int | None
    source: str
    doubt: str = ""


@dataclass(frozen=True)
class Folder:
    """Room in a folder. free: bytes; refusal: why it cannot be written, None if it can."""

    path: str
    free: int | None
    refusal: str | None


@dataclass(frozen=True)
class Wish:
    """An interface that was asked for: where (`--interface`, a variable), how it was written, and which it means here."""

    source: str
    value: str
    means: tuple[str, ...]


@dataclass(frozen=True)
class Network:
    """Interfaces. name: the one in use, None where none was asked for; names: all that are there; address: the one used."""

    wishes: tuple[Wish, ...]
    name: str | None
    names: tuple[str, ...]
    address: str


@dataclass(frozen=True)
class Seat:
    """A launcher's variables in a process's environment: which rank of how many it says."""

    launcher: str
    rank: int
    world: int


@dataclass(frozen=True)
class Knock:
    """A try to reach another process. to: its index; error: None if it answered."""

    to: int
    error: str | None


@dataclass(frozen=True)
class Arrival:
    """A process that came. name: what its host calls itself; clock: machine.clock_id; port: where others knock."""

    index: int
    name: str
    clock: str
    address: str
    port: int


@dataclass(frozen=True)
class Report:
    """All that a host tells. What could not be learned is None, with its reason in `reasons` under the same name.

    shared: whether the first host's probe file is seen in the run folder here.
    """

    index: int
    software: Mapping[str, str | None] | None = None
    code: Code | None = None
    devices: Devices | None = None
    folder: Folder | None = None
    memory: Folder | None = None
    shared: bool | None = None
    network: Network | None = None
    seats: tuple[Seat, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    exchanges: tuple[Exchange, ...] = ()
    knocks: tuple[Knock, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


_ARRIVAL, _REPORT = TypeAdapter(Arrival), TypeAdapter(Report)


def arrival_of(document: Mapping[str, Any]) -> Arrival:
    """An arrival as it came over the network. Raises ValueError if it is none."""
    return _ARRIVAL.validate_python(document)


def report_of(document: Mapping[str, Any]) -> Report:
    """A report as it came over the network. Raises ValueError if it is none."""
    return _REPORT.validate_python(document)
