"""Another host's part: it comes, compares clocks, looks at itself, knocks at doors, reports, and hears that it is over."""

import asyncio
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from assay.errors import BadInput, RunFailed
from assay.preflight import folders, surroundings
from assay.preflight.clocks import EXCHANGES
from assay.preflight.facts import Exchange, arrival_of
from assay.preflight.meeting import GREETING_SECONDS, Setting, arrival_here, open_own_door, report_here, resolve
from assay.preflight.reach import KNOCK_SECONDS, knock_at
from assay.preflight.reason import reason_of
from assay.preflight.survey import PART_SECONDS, survey, within
from assay.preflight.wire import Link, Refused

_PAUSE = 0.1  # s between two tries to reach the first host


async def join(setting: Setting) -> None:
    """Take part, and return when the first host says that it is over.

    Raises RunFailed if the first host cannot be reached, turns this one away or goes away; BadInput if it has another
    token.
    """
    link = await _call(setting)
    try:
        await _take_part(link, setting)
    except Refused:
        raise BadInput(
            f"--meet {setting.where}: what answers there does not share this host's ASSAY_PREFLIGHT_TOKEN, or is no "
            "pre-flight; give all hosts the starter's token, or another port"
        ) from None
    except (OSError, asyncio.TimeoutError) as error:
        raise RunFailed(
            f"{setting.where}: the first host, {setting.hosts[0]}, went away before the pre-flight was over "
            f"({reason_of(error)}); what it says tells why"
        ) from None
    finally:
        link.close()


async def _take_part(link: Link, setting: Setting) -> None:
    await asyncio.wait_for(link.greet(), GREETING_SECONDS)
    # The first host compares clocks in turns, so the first answer may take long.
    exchanges = [await _read_clock(link, setting) for _ in range(EXCHANGES)]
    network = surroundings.network(setting.env, setting.interface, link.near)
    door = await open_own_door(network, setting)
    await link.send({"what": "hello", "arrival": asdict(arrival_here(setting, network, door))})
    looking = asyncio.create_task(survey(setting.folder, setting.env, torch=setting.torch))
    # The first host may have begun to wait as late as this one has reached it.
    message = await asyncio.wait_for(link.receive(), setting.wait + GREETING_SECONDS)
    if message.get("what") != "go":
        raise RunFailed(_turned_away(message, setting))
    doors = [arrival_of(item) for item in message["doors"]]
    probe = folders.Probe(**message["probe"]) if message["probe"] else None
    knocks, shared, found = await asyncio.gather(
        knock_at(doors, network.address, setting.token), _look_for(probe), looking
    )
    report = report_here(setting, found, network)
    report = replace(report, knocks=tuple(knocks), exchanges=tuple(exchanges), shared=shared)
    await link.send({"what": "report", "report": asdict(report)})
    await asyncio.wait_for(link.receive(), setting.report_seconds + GREETING_SECONDS)
    door.close()


async def _call(setting: Setting) -> Link:
    """A connection to the first host, which may be up later than this one."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + setting.wait
    error: Exception | None = None
    while (left := deadline - loop.time()) > 0:
        try:
            # In a thread of its own: a name server that is silent would hold up even this process's end.
            address = (await within(lambda: resolve(setting.host), left))[0]
            opening = asyncio.open_connection(address, setting.port)
            reader, writer = await asyncio.wait_for(opening, min(KNOCK_SECONDS, left))
            return Link(reader, writer, setting.token, served=False)
        except (OSError, asyncio.TimeoutError) as caught:
            error = caught
        await asyncio.sleep(_PAUSE)
    raise RunFailed(
        f"{setting.where}: the first host, {setting.hosts[0]}, cannot be reached within {setting.wait:g} s from "
        f"{platform.node()} ({reason_of(error)}); see that it is up, that its pre-flight was started, and that no "
        "firewall lies between"
    )


async def _read_clock(link: Link, setting: Setting) -> Exchange:
    asked = setting.clock()
    await link.send({"what": "clock"})
    message = await asyncio.wait_for(link.receive(), setting.wait + GREETING_SECONDS)
    back = setting.clock()
    return asked, float(message["heard"]), float(message["answered"]), back


def _turned_away(message: Mapping[str, Any], setting: Setting) -> str:
    if message.get("reason") == "twice":
        return (
            f"index {setting.index} ({setting.hosts[setting.index]}): another process has come under this index; start "
            "one process on each host"
        )
    return (
        f"{setting.hosts[0]} had stopped waiting when {platform.node()} came; start all hosts together, or give a longer "
        "--wait"
    )


async def _look_for(probe: folders.Probe | None) -> bool | None:
    if probe is None:
        return None
    try:
        return await within(lambda: folders.sees(probe), PART_SECONDS)
    except asyncio.TimeoutError:
        return None
