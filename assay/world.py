"""The world of ranks: who belongs to it, and how ranks find each other and part."""

import json
import os
import platform
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from assay import machine
from assay.device import Device, built_in_backends
from assay.errors import BadInput, RunFailed
from assay.placement import Placement, rendezvous_environment

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined] # documented, but re-exported implicitly

LEAVE_SECONDS = 10.0
OPERATION_TIMEOUT = timedelta(minutes=30)  # of one collective; the case's time limit ends a hang much earlier


@dataclass(frozen=True)
class World:
    """The ranks that run together. `hosts`: host name of each rank; `one_clock`: all read the same monotonic clock."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    backend: str
    hosts: tuple[str, ...]
    one_clock: bool

    @property
    def is_first(self) -> bool:
        """Whether this rank prints."""
        return self.rank == 0

    @property
    def pair(self) -> tuple[int, int]:
        """The pinned pair of pt2pt: ranks 0 and 1, or rank 0 and the first rank of the second host."""
        other = next((rank for rank, host in enumerate(self.hosts) if host != self.hosts[0]), 1)
        return 0, other

    def barrier(self) -> None:
        """Return when all ranks have come."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def gather(self, item: object) -> list[object]:
        """`item` of every rank, on every rank, in the order of ranks. For small things outside timed regions."""
        if self.size == 1:
            return [item]
        import torch.distributed as dist

        items: list[object] = [None] * self.size
        dist.all_gather_object(items, item)
        return items


def first_line(text: str) -> str:
    """The first line of a message that may be long, at most 300 characters."""
    line = text.strip().splitlines()[0] if text.strip() else "no message"
    return line if len(line) <= 300 else line[:297] + "..."


def join(place: Placement, backend: str, device: Device, limit: float) -> World:
    """Find the other ranks within `limit` s. Raises BadInput or RunFailed with a sentence that names who is missing."""
    me = {"host": platform.node(), "clock": machine.clock_id(), "pid": os.getpid()}
    if place.world == 1:
        return World(0, 1, place.local_rank, place.local_world, "none", (str(me["host"]),), True)
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if not dist.is_backend_available(backend):
        raise BadInput(f"--backend {backend} is not built into this torch; it has {', '.join(built_in_backends())}")
    for name, value in rendezvous_environment(place, os.environ).items():
        os.environ.setdefault(name, value)
    timeout = timedelta(seconds=limit)
    store = _store(place, timeout)
    # torchrun's store outlives a restart of its ranks: each attempt needs keys of its own.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _wait_for_all(PrefixStore(f"assay/{attempt}", store), place, timeout)
    # gloo takes one device; an accelerator's backend is told which of the devices is ours.
    device_id = device.torch_device if device.type != "cpu" else None
    dist.init_process_group(
        backend,
        store=PrefixStore(f"world/{attempt}", store),
        rank=place.rank,
        world_size=place.world,
        timeout=OPERATION_TIMEOUT,
        device_id=device_id,
    )
    everyone: list[dict[str, str]] = [{}] * place.world
    dist.all_gather_object(everyone, me)
    return World(
        place.rank,
        place.world,
        place.local_rank,
        place.local_world,
        backend,
        tuple(str(one["host"]) for one in everyone),
        len({one["clock"] for one in everyone}) == 1,
    )


def _store(place: Placement, timeout: timedelta) -> "Store":
    # torchrun's agent keeps the store; under any other launcher rank 0 does.
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # documented, but re-exported implicitly

    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"environment: MASTER_PORT={port!r} should be a port number from 1 to 65535")
    keeps = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not keeps:
        _await_listener(host, int(port), timeout)
    try:
        store: Store = TCPStore(host, int(port), is_master=keeps, timeout=timeout, wait_for_workers=False)
        return store
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        if "EADDRINUSE" in str(error):
            raise BadInput(f"port {port} is in use; set MASTER_PORT to a free one") from None
        raise RunFailed(f"rendezvous at {host}:{port} failed: {first_line(str(error))}") from None


def _await_listener(host: str, port: int, timeout: timedelta) -> None:
    # torch would wait as long, but fill the log with stack traces of its own.
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"no rendezvous at {host}:{port} within {timeout.total_seconds():g} s "
                    f"({(error.strerror or str(error)).lower()}); is rank 0's host started and reachable?"
                ) from None
            time.sleep(0.1)


def _wait_for_all(store: "Store", place: Placement, timeout: timedelta) -> None:
    # Without this, a rank that never came would be found after the collectives' time-out, and not by name.
    # Rank 0 alone looks at every rank, so that the cost grows with the ranks, not with their square.
    import torch.distributed as dist

    store.set(f"here/{place.rank}", platform.node())
    if place.rank == 0:
        deadline = time.monotonic() + timeout.total_seconds()
        missing = list(range(place.world))
        while missing:
            missing = [rank for rank in missing if not store.check([f"here/{rank}"])]
            if missing and time.monotonic() > deadline:
                break
            if missing:
                time.sleep(0.02)
        store.set("ready", json.dumps(missing))
    else:
        try:
            store.wait(["ready"], timeout + timedelta(seconds=5))
            missing = json.loads(store.get("ready"))
        except (dist.DistStoreError, dist.DistNetworkError):
            raise RunFailed("rank 0 went away before all ranks had joined; look at its log") from None
    if missing:
        names = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        raise RunFailed(
            f"{len(missing)} of {place.world} ranks did not join within {timeout.total_seconds():g} s: {names}; "
            "look at their logs or raise --join-timeout"
        )


def leave() -> None:
    """Part from the others, waiting for none of them for long."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)  # with a dead peer some backends wait for ever
