"""Messages between the hosts: JSON with an HMAC of a secret that the starter gave to all. Nothing of others is executed.

Both sides begin with 16 random bytes. Each message's HMAC covers these, the direction and the message's number, so that
nothing recorded can be said again. What is said is not secret; only who says it matters.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import struct
from collections.abc import Iterator, Mapping
from typing import Any

MOST_BYTES = 1 << 22  # of one message; a report has some thousand
_NONCE = 16
_HEAD = struct.Struct("!I32s")


class Refused(Exception):
    """The other side has another token, or is no pre-flight at all."""


def tag(token: str, *parts: bytes) -> bytes:
    """HMAC-SHA256 of the parts, 32 bytes; each part counts with its length."""
    text = b"".join(struct.pack("!Q", len(part)) + part for part in parts)
    return hmac.digest(token.encode(), text, "sha256")


class Link:
    """One connection. served: this side is the one that was called."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, *, served: bool) -> None:
        self._reader, self._writer, self._token = reader, writer, token
        self._own, self._other = (b"served", b"calling") if served else (b"calling", b"served")
        self._served = served
        self._nonces = b""
        self._sent = self._received = 0

    @property
    def near(self) -> str:
        """This side's address."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def far(self) -> str:
        """The other side's address."""
        return str(self._writer.get_extra_info("peername")[0])

    async def greet(self) -> None:
        """Exchange the random bytes. Raises ConnectionError if the other side is gone."""
        own = secrets.token_bytes(_NONCE)
        self._writer.write(own)
        other = await self._exactly(_NONCE)
        self._nonces = other + own if self._served else own + other

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message. Raises ConnectionError if the other side is gone."""
        body = json.dumps(message).encode()
        # No other task runs between counting and writing, so numbers go out in order.
        mac = tag(self._token, self._own, self._nonces, self._sent.to_bytes(8, "big"), body)
        self._sent += 1
        self._writer.write(_HEAD.pack(len(body), mac) + body)
        await self._writer.drain()

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises Refused if its HMAC is wrong, ConnectionError if the other side is gone."""
        size, mac = _HEAD.unpack(await self._exactly(_HEAD.size))
        if size > MOST_BYTES:
            raise Refused
        body = await self._exactly(size)
        expected = tag(self._token, self._other, self._nonces, self._received.to_bytes(8, "big"), body)
        if not hmac.compare_digest(mac, expected):
            raise Refused
        self._received += 1
        message = json.loads(body)
        if not isinstance(message, dict):
            raise Refused
        return message

    @contextlib.contextmanager
    def hanging_up_after(self, seconds: float) -> Iterator[None]:
        """Within it, the connection is closed after so long: whoever waits gets ConnectionError."""
        timer = asyncio.get_running_loop().call_later(seconds, self.close)
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        """Hang up; what was sent before still arrives."""
        self._writer.close()

    async def _exactly(self, count: int) -> bytes:
        try:
            return await self._reader.readexactly(count)
        except asyncio.IncompleteReadError:
            raise ConnectionError("it has hung up") from None
