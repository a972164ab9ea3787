"""Why something failed, for the middle of a sentence."""

import asyncio
import os
import socket


def reason_of(error: Exception | None) -> str:
    """`connection refused`, `name or service not known`; the kernel's words, without the address that asyncio adds."""
    if isinstance(error, asyncio.TimeoutError) and not getattr(error, "errno", None):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return (error.strerror or str(error)).lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
