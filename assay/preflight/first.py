"""The first host's part: it listens, tells the time, says who knocks where, and hears all reports. One connection a host."""

import asyncio
import contextlib
import platform
import resource
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from assay.errors import BadInput
from assay.preflight import folders, surroundings
from assay.preflight.facts import Arrival, Report, arrival_of, report_of
from assay.preflight.meeting import (
    GREETING_SECONDS,
    Gathered,
    Setting,
    arrival_here,
    open_own_door,
    report_here,
    resolve,
)
from assay.preflight.reach import knock_at, neighbours
from assay.preflight.reason import reason_of
from assay.preflight.survey import PART_SECONDS, survey, within
from assay.preflight.wire import Link, Refused

TURNS = 8  # hosts that compare their clocks at a time


class _Desk:
    """Where the first host receives the others."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.arrivals: dict[int, Arrival] = {}
        self.links: dict[int, Link] = {}
        self.doubles: list[Arrival] = []
        self.strangers: list[str] = []
        self.complete = asyncio.Event()
        self.closed = False
        # Thousands that ask for the time at once would all wait for each other's answers, and learn little of it.
        self._turns = asyncio.Semaphore(TURNS)
        self._reports: dict[int, asyncio.Future[Any]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One caller, from the greeting to its report."""
        link = Link(reader, writer, self._setting.token, served=True)
        index: int | None = None
        try:
            index = await self._receive(link)
            if index is not None:
                self._settle(index, (await link.receive()).get("report"))
                return
        except Refused:
            self.strangers.append(link.far)
            await _say(link, {"what": "refused"})
        except (OSError, ValueError, asyncio.TimeoutError):
            if index is not None:
                self._settle(index, None)
        except asyncio.CancelledError:
            pass  # the pre-flight was interrupted; asyncio would print a traceback of a caller that is cancelled
        link.close()

    async def _receive(self, link: Link) -> int | None:
        """The index of a new arrival, once its clock is compared; None if it must go."""
        with link.hanging_up_after(GREETING_SECONDS):
            await link.greet()
            message = await link.receive()
        async with self._turns:
            with link.hanging_up_after(GREETING_SECONDS):
                hello = await self._tell_time(link, message)
        arrival = arrival_of(hello.get("arrival", {}))
        if not 0 < arrival.index < len(self._setting.hosts):
            return None
        if self.closed:
            await _say(link, {"what": "end", "reason": "late"})
            return None
        if arrival.index in self.arrivals:
            self.doubles.append(arrival)
            await _say(link, {"what": "end", "reason": "twice"})
            return None
        self.arrivals[arrival.index], self.links[arrival.index] = arrival, link
        self._reports[arrival.index] = asyncio.get_running_loop().create_future()
        if len(self.arrivals) == len(self._setting.hosts) - 1:
            self.complete.set()
        return arrival.index

    async def _tell_time(self, link: Link, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer until something else than the time is asked for; returns that."""
        clock = self._setting.clock
        while message.get("what") == "clock":
            heard = clock()
            await link.send({"what": "clock", "heard": heard, "answered": clock()})
            message = await link.receive()
        return message

    def _settle(self, index: int, report: Any) -> None:
        if not self._reports[index].done():
            self._reports[index].set_result(report)

    async def report(self, index: int, deadline: float) -> Report | str:
        """The report of an arrival, or why there is none by the deadline (the loop's time)."""
        left = max(deadline - asyncio.get_running_loop().time(), 0.0)
        try:
            told = await asyncio.wait_for(self._reports[index], left)
            return "went away before it had reported" if told is None else report_of(told)
        except asyncio.TimeoutError:
            return f"did not report within {self._setting.report_seconds:g} s"
        except ValueError:
            return "reports in a form that is not understood here"


async def gather(setting: Setting) -> Gathered:
    """Be the first host: wait for the others, take part, and hear all reports.

    Raises BadInput if HOST:PORT cannot be listened at here.
    """
    _allow_files(len(setting.hosts))
    desk = _Desk(setting)
    addresses = await _own_addresses(setting)
    server = await _listen(desk, setting, addresses)
    looking = asyncio.create_task(survey(setting.folder, setting.env, torch=setting.torch))
    try:
        if len(setting.hosts) > 1:
            await _until(desk.complete.wait(), setting.wait)
        desk.closed = True
        near = next((link.near for link in desk.links.values()), addresses[0])
        network = surroundings.network(setting.env, setting.interface, near)
        door = await open_own_door(network, setting)
        me = arrival_here(setting, network, door)
        everyone = [me, *(desk.arrivals[index] for index in sorted(desk.arrivals))]
        probe = await _place_probe(setting.folder)
        try:
            deadline = asyncio.get_running_loop().time() + setting.report_seconds
            await asyncio.gather(*(_send_off(desk, everyone, place, probe) for place in range(1, len(everyone))))
            knocks = await knock_at(_doors(everyone, 0), network.address, setting.token)
            told = {item.index: await desk.report(item.index, deadline) for item in everyone[1:]}
            own = replace(report_here(setting, await looking, network), knocks=tuple(knocks))
        finally:
            if isinstance(probe, folders.Probe):
                folders.remove_probe(probe)
        door.close()
        await asyncio.gather(*(_say(link, {"what": "over"}) for link in desk.links.values()))
    finally:
        server.close()
        for link in desk.links.values():
            link.close()
    return Gathered(
        hosts=setting.hosts,
        arrivals=tuple(everyone),
        reports={0: own, **{index: item for index, item in told.items() if isinstance(item, Report)}},
        silent={index: item for index, item in told.items() if isinstance(item, str)},
        doubles=tuple(desk.doubles),
        strangers=tuple(dict.fromkeys(desk.strangers)),
        probe=probe if isinstance(probe, str) else None,
    )


async def _own_addresses(setting: Setting) -> list[str]:
    try:
        resolved = await within(lambda: resolve(setting.host), GREETING_SECONDS)
    except (OSError, asyncio.TimeoutError) as error:
        raise BadInput(
            f"--meet {setting.where}: {setting.host} cannot be looked up on {platform.node()} ({reason_of(error)}); give "
            "a name or an address of the first host"
        ) from None
    found = listening_addresses(setting.host, resolved, surroundings.interfaces(), setting.interface)
    if not found:
        raise BadInput(
            f"--meet {setting.where}: {', '.join(resolved)} is no address of {platform.node()}, where index 0 runs; give "
            "a name or an address of the first host, or start index 0 there"
        )
    return found


def listening_addresses(
    host: str, resolved: Sequence[str], interfaces: Mapping[str, Sequence[str]], interface: str | None
) -> list[str]:
    """Where the first host listens: those of the addresses `resolved` of `host` that are its own; empty if none is.

    Many systems resolve a host's own name to loopback, which others do not: then at its other addresses too, of
    `interface` where that has any. `interfaces`: addresses by name.
    """
    own = [address for addresses in interfaces.values() for address in addresses]
    ours = [address for address in resolved if address in own or _is_loopback(address)]
    by_name = host != "localhost" and host not in resolved
    if ours and by_name and all(map(_is_loopback, ours)):
        wanted = interfaces.get(interface or "") or own
        ours += [address for address in wanted if not _is_loopback(address)]
    return list(dict.fromkeys(ours))


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


async def _listen(desk: _Desk, setting: Setting, addresses: Sequence[str]) -> asyncio.Server:
    try:
        return await asyncio.start_server(desk.serve, addresses, setting.port, backlog=max(128, len(setting.hosts)))
    except OSError as error:
        raise BadInput(
            f"--meet {setting.where}: cannot listen there ({reason_of(error)}); give a free port, and index 0 to one "
            "process only"
        ) from None


def _doors(everyone: Sequence[Arrival], place: int) -> list[Arrival]:
    return [everyone[other] for other in neighbours(place, len(everyone))]


async def _send_off(desk: _Desk, everyone: Sequence[Arrival], place: int, probe: folders.Probe | str) -> None:
    doors = [asdict(door) for door in _doors(everyone, place)]
    written = asdict(probe) if isinstance(probe, folders.Probe) else None
    await _say(desk.links[everyone[place].index], {"what": "go", "doors": doors, "probe": written})


async def _place_probe(folder: Path) -> folders.Probe | str:
    try:
        return await within(lambda: folders.place_probe(folder), PART_SECONDS)
    except (OSError, asyncio.TimeoutError) as error:
        return reason_of(error)


async def _say(link: Link, message: Mapping[str, Any]) -> None:
    # Who does not listen any more is noticed by its missing report.
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(link.send(message), GREETING_SECONDS)


async def _until(coming: Awaitable[Any], seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(coming, seconds)


def _allow_files(hosts: int) -> None:
    """One connection a host: the usual 1,024 files would end it at a thousand hosts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hosts + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
