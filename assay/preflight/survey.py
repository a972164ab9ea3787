"""A host looks at itself. Every part is a thread with a time limit: a network file system that hangs holds up nothing else."""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from assay import machine
from assay.beacon import memory_folder
from assay.preflight import devices, folders
from assay.preflight.facts import Code

T = TypeVar("T")
PART_SECONDS = 5.0


@dataclass(frozen=True)
class Survey:
    """Values by their names in `Report`; reasons: why some are missing."""

    values: Mapping[str, Any]
    reasons: Mapping[str, str]


async def survey(folder: Path, env: Mapping[str, str], *, torch: bool) -> Survey:
    """Everything that a host tells of itself alone. Takes PART_SECONDS at most, with torch devices.TORCH_SECONDS more."""
    parts: dict[str, Callable[[], Any]] = {
        "software": machine.software,
        "code": code,
        "folder": lambda: folders.room(folder),
        "memory": lambda: folders.room(memory_folder()),
        "devices": lambda: devices.ask_torch(machine.python(), env) if torch else devices.count(env),
    }
    limits = {name: PART_SECONDS + (devices.TORCH_SECONDS if torch and name == "devices" else 0.0) for name in parts}
    done = await asyncio.gather(*(within(part, limits[name]) for name, part in parts.items()), return_exceptions=True)
    values, reasons = {}, {}
    for name, result in zip(parts, done, strict=True):
        if isinstance(result, asyncio.TimeoutError):
            reasons[name] = f"no answer within {limits[name]:g} s"
        elif isinstance(result, BaseException):
            reasons[name] = f"{type(result).__name__}: {result}"
        else:
            values[name] = result
    return Survey(values, reasons)


def code() -> Code:
    """The code that runs here, its uncommitted changes as a digest."""
    about = machine.code()
    diff = about["diff"]
    return Code(
        version=str(about["version"]),
        path=str(about["path"]),
        revision=about["revision"],
        sources=machine.source_digest(),
        changes=None if diff is None else hashlib.sha256(diff.encode()).hexdigest(),
    )


async def within(function: Callable[[], T], seconds: float) -> T:
    """What `function` returns or raises, in a thread that nobody waits for in the end. Raises asyncio.TimeoutError."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(value: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type] # None only where T allows it

    def work() -> None:
        try:
            value, error = function(), None
        except Exception as caught:
            value, error = None, caught
        # The loop may have ended while a file system hung.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, value, error)

    threading.Thread(target=work, daemon=True).start()
    return await asyncio.wait_for(future, seconds)
