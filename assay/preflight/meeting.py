"""What the first host and the others need alike to meet: the setting, what the first one heard, and their own parts in it."""

import asyncio
import platform
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from assay import machine
from assay.errors import RunFailed
from assay.preflight import devices, surroundings
from assay.preflight.facts import Arrival, Network, Report
from assay.preflight.reach import MOST_SECONDS, open_door
from assay.preflight.reason import reason_of
from assay.preflight.survey import PART_SECONDS, Survey

GREETING_SECONDS = 5.0  # for a few small messages
REPORT_SECONDS = max(PART_SECONDS, MOST_SECONDS) + 1.0  # from the start of the knocking to the last report


@dataclass(frozen=True)
class Setting:
    """One process of the pre-flight. host, port: where the first listens; wait: s; clock: this host's wall clock, in s."""

    index: int
    hosts: tuple[str, ...]
    host: str
    port: int
    token: str
    folder: Path
    interface: str | None = None
    wait: float = 10.0
    torch: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time

    @property
    def where(self) -> str:
        """Where they meet, for a sentence."""
        return f"{self.host}:{self.port}"

    @property
    def report_seconds(self) -> float:
        """How long a host may take from the start of the knocking to its report."""
        return REPORT_SECONDS + (devices.TORCH_SECONDS if self.torch else 0.0)


@dataclass(frozen=True)
class Gathered:
    """What the first host heard. silent: hosts that came but did not report, and why; doubles: came under a taken index.

    strangers: addresses from which somebody called with another token. probe: why the first host could not write its
    probe file, None if it could.
    """

    hosts: tuple[str, ...]
    arrivals: tuple[Arrival, ...]
    reports: Mapping[int, Report]
    silent: Mapping[int, str] = field(default_factory=dict)
    doubles: tuple[Arrival, ...] = ()
    strangers: tuple[str, ...] = ()
    probe: str | None = None


async def open_own_door(network: Network, setting: Setting) -> asyncio.Server:
    """The door at which others knock. Raises RunFailed if this host cannot listen at its address."""
    try:
        return await open_door(network.address, setting.index, setting.token)
    except OSError as error:
        raise RunFailed(
            f"{platform.node()}: cannot listen at {network.address} ({reason_of(error)}); give another --interface"
        ) from None


def arrival_here(setting: Setting, network: Network, door: asyncio.Server) -> Arrival:
    """This process, as it shows itself to the others."""
    port = door.sockets[0].getsockname()[1]
    return Arrival(setting.index, platform.node(), machine.clock_id(), network.address, port)


def report_here(setting: Setting, found: Survey, network: Network) -> Report:
    """What this host can tell without the others."""
    return Report(
        index=setting.index,
        network=network,
        seats=surroundings.seats(setting.env),
        settings=surroundings.settings(setting.env),
        reasons=found.reasons,
        **found.values,
    )


def resolve(host: str) -> list[str]:
    """The addresses of a name, which may take as long as a silent name server lets one wait. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))
