"""The world of ranks: who belongs to it, and how ranks find each other and part."""

import json
import os
import platform
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from assay import machine
from assay.channel import Alone, Channel, MpiChannel, TorchChannel, first_said
from assay.device import Device, built_in_backends
from assay.errors import BadInput, RunFailed
from assay.placement import Placement, rendezvous_environment

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined] # documented, but re-exported implicitly

T = TypeVar("T")

LEAVE_SECONDS = 10.0
MPI_BACKEND = "mpi4py"  # torch has a backend "mpi" of its own
MOST_MESHED = 64  # ranks that gloo may connect each with each before the first call
OPERATION_TIMEOUT = timedelta(minutes=30)  # of one collective; the case's time limit ends a hang much earlier


@dataclass(frozen=True)
class World:
    """The ranks that run together. `hosts`: host name of each rank; `one_clock`: all read the same monotonic clock.

    backend: what moves the bytes: torch.distributed's backend, or mpi4py. clocks: which monotonic clock each rank reads.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    backend: str
    hosts: tuple[str, ...]
    one_clock: bool
    clocks: tuple[str, ...] = ()
    channel: Channel = field(default_factory=Alone, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Return when all ranks have come."""
        self.channel.barrier()

    def collect(self, item: T) -> list[T] | None:
        """`item` of every rank in the order of ranks, on rank 0; None elsewhere. For small things outside timed regions."""
        return self.channel.collect(item)

    def broadcast(self, item: T, source: int = 0) -> T:
        """`item` of rank `source`, on every rank."""
        return self.channel.broadcast(item, source)

    def gather(self, item: object) -> list[object]:
        """`item` of every rank, on every rank. Only for what ranks of a host share: see Channel."""
        return self.channel.gather(item)

    def first_said(self, said: str) -> str | None:
        """What the lowest rank with something to say says, on every rank; None if all give an empty text."""
        return first_said(self.channel, said)

    def agree(self, value: int) -> int:
        """Rank 0's value, on every rank: ranks that decide for themselves end up in different calls."""
        return self.channel.agree(value)

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The elementwise maximum over ranks of equally long `values`."""
        return self.channel.largest(values)

    def total(self, value: float) -> float:
        """The sum of `value` over ranks, on every rank. Exact for whole numbers below 2^53."""
        return float(self.channel.total(np.array([value], dtype=np.float64))[0])


def first_of_second_host(hosts: Sequence[str]) -> int:
    """The first rank of the second host, given every rank's host; 1 if there is only one host."""
    return next((rank for rank, host in enumerate(hosts) if host != hosts[0]), 1)


def first_line(text: str) -> str:
    """The first line of a message that may be long, at most 300 characters."""
    line = text.strip().splitlines()[0] if text.strip() else "no message"
    return line if len(line) <= 300 else line[:297] + "..."


def join(place: Placement, backend: str, device: Device, limit: float) -> World:
    """Find the other ranks over torch.distributed within `limit` s.

    Raises BadInput or RunFailed with a sentence that names who is missing.
    """
    if place.world == 1:
        return _world(place, "none", Alone())
    join_torch(place, backend, device, limit)
    return _world(place, backend, _control(backend, device))


def join_mpi(comm: Any, place: Placement, backend: str) -> World:
    """The world that mpirun (or srun) has made already. comm: mpi4py's communicator of all ranks.

    backend: what is going to move the bytes.
    """
    return _world(place, backend, MpiChannel(comm.Dup()) if place.world > 1 else Alone())


def meet_over_mpi(comm: Any) -> None:
    """Tell every rank where torch.distributed may meet: an MPI world needs no address and has none."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        where = comm.bcast((platform.node(), probe.getsockname()[1]), 0)
    several = MpiChannel(comm).largest(np.array([float(platform.node() != where[0])]))[0] > 0
    os.environ.setdefault("MASTER_ADDR", where[0] if several else "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(where[1]))


def _world(place: Placement, backend: str, channel: Channel) -> World:
    everyone = [str(one).split("\n") for one in channel.gather(f"{platform.node()}\n{machine.clock_id()}")]
    clocks = tuple(clock for _, clock in everyone)
    hosts = tuple(host for host, _ in everyone)
    one_clock = len(set(clocks)) == 1
    return World(
        place.rank, place.world, place.local_rank, place.local_world, backend, hosts, one_clock, clocks, channel
    )


def _control(backend: str, device: Device) -> Channel:
    import torch
    import torch.distributed as dist

    cpu = torch.device("cpu")
    if backend == "gloo":
        return TorchChannel(dist.group.WORLD, cpu)
    if dist.is_gloo_available():
        _connect_on_demand()
        return TorchChannel(dist.new_group(backend="gloo", timeout=OPERATION_TIMEOUT), cpu)
    return TorchChannel(dist.group.WORLD, device.torch_device)


def _connect_on_demand() -> None:
    """From now on gloo connects two ranks when they first talk.

    Else each connects to all before the first call, and reads from each a list as long as the world: n² connections and
    n³ bytes in all. Our channel's trees need log n connections a rank. torch before 2.8 does not know the variable.
    """
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")


def mpi_placement() -> tuple[Placement, Any]:
    """This process's place as MPI itself knows it, and the communicator of all ranks.

    Raises BadInput without mpi4py or an MPI, or if the launcher's ranks are no MPI world.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise BadInput(
            f"--transport mpi: mpi4py cannot be used ({first_line(str(error))}); install an MPI and assay[mpi]"
        ) from None
    comm = MPI.COMM_WORLD
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    place = Placement(comm.Get_rank(), comm.Get_size(), here.Get_rank(), here.Get_size(), "MPI")
    here.Free()
    said = int(os.environ["WORLD_SIZE"]) if os.environ.get("WORLD_SIZE", "").isdigit() else place.world
    if said != place.world:
        raise BadInput(
            f"MPI: the launcher started {said} ranks, but MPI sees {place.world}; start with mpirun -n {said}"
        )
    return place, comm


def join_torch(place: Placement, backend: str, device: Device, limit: float) -> None:
    """Make torch.distributed's default group within `limit` s. Raises BadInput or RunFailed as `join` does."""
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
    if backend == "gloo" and place.world > MOST_MESHED:
        _connect_on_demand()
    dist.init_process_group(
        backend,
        store=PrefixStore(f"world/{attempt}", store),
        rank=place.rank,
        world_size=place.world,
        timeout=OPERATION_TIMEOUT,
        device_id=device_id,
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


def leave() -> bool:
    """Part from the others, waiting for none of them for long; whether there was a group of torch.distributed to leave.

    MPI parts by itself when the process ends.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return False
    leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)  # with a dead peer some backends wait for ever
    return True
