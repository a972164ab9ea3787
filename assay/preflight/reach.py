"""Who reaches whom: every process opens a door on its address and knocks at others'. Nothing is quadratic per host."""

import asyncio
import contextlib
import errno
import hmac
import math
import secrets
from collections.abc import Sequence

from assay.preflight.facts import Arrival, Knock
from assay.preflight.reason import reason_of
from assay.preflight.wire import tag

EVERY_PAIR = 64  # hosts up to which every pair is tried
KNOCK_SECONDS = 2.0  # one repeated SYN (after 1 s) may be lost, too
TRIES = 2  # of a connection that does not come about: a busy machine must not be taken for a pulled cable
# The kernel connects for a process that has no time at the moment; its answer only tells that it is the right one.
ANSWER_SECONDS = 3.0
MOST_SECONDS = TRIES * KNOCK_SECONDS + ANSWER_SECONDS
_NONCE, _ANSWER = 16, 32


def neighbours(place: int, count: int) -> list[int]:
    """The places whose doors `place` knocks at, of `count` places in a ring.

    All others up to EVERY_PAIR; above, those at distances ±1, ±2, ±4 …: 2·⌈log₂ count⌉ at most, and each pair in both
    directions.
    """
    if count <= EVERY_PAIR:
        return [other for other in range(count) if other != place]
    steps = [1 << power for power in range(math.ceil(math.log2(count)))]
    return sorted({(place + step) % count for step in steps} | {(place - step) % count for step in steps})


async def open_door(address: str, index: int, token: str) -> asyncio.Server:
    """Answer, at a port that the kernel chooses, whoever knocks. Raises OSError if the address cannot be had."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            nonce = await asyncio.wait_for(reader.readexactly(_NONCE), KNOCK_SECONDS)
            writer.write(tag(token, b"door", nonce, str(index).encode()))
            await writer.drain()
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.CancelledError):
            pass  # a scanner, a knock that gave up, or our own end; the one who knocked tells
        finally:
            writer.close()

    return await asyncio.start_server(answer, address, 0, backlog=256)


async def knock_at(doors: Sequence[Arrival], own: str, token: str) -> list[Knock]:
    """Knock at all the doors at once, from the address `own`. Takes MOST_SECONDS at most."""
    errors = await asyncio.gather(*(_knock(door, own, token) for door in doors))
    return [Knock(door.index, error) for door, error in zip(doors, errors, strict=True)]


async def _knock(door: Arrival, own: str, token: str) -> str | None:
    try:
        connection = await _connect(door, own)
        if connection is None:
            return f"no connection within {KNOCK_SECONDS:g} s, tried {TRIES} times"
        return await asyncio.wait_for(_ask(door, *connection, token), ANSWER_SECONDS)
    except asyncio.TimeoutError:
        return f"connected, but no answer within {ANSWER_SECONDS:g} s"
    except EOFError:
        return "it hangs up at once"
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0)
        return f"{name}: {reason_of(error)}" if name else reason_of(error)


async def _connect(door: Arrival, own: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    for _ in range(TRIES):
        with contextlib.suppress(asyncio.TimeoutError):
            opening = asyncio.open_connection(door.address, door.port, local_addr=(own, 0))
            return await asyncio.wait_for(opening, KNOCK_SECONDS)
    return None


async def _ask(door: Arrival, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> str | None:
    try:
        nonce = secrets.token_bytes(_NONCE)
        writer.write(nonce)
        answer = await reader.readexactly(_ANSWER)
    finally:
        writer.close()
    right = hmac.compare_digest(answer, tag(token, b"door", nonce, str(door.index).encode()))
    return None if right else f"another process answers at {door.address}"
