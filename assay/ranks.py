"""Joining and leaving the world: one door for torchrun, Slurm, Open MPI and MPICH.

with session(options, "comms/bench") as here:
    ... here.world, here.device, here.recorder ...
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

from assay import machine
from assay.device import Device, built_in_backends, default_backend, describe_build, open_device
from assay.errors import INTERRUPTED_EXIT, RUN_FAILED_EXIT, SENTENCE_MARK, AssayError, BadInput, RunFailed
from assay.options.base import ScriptOptions
from assay.placement import Placement, placement, rendezvous_environment
from assay.record import Header
from assay.recorder import Recorder
from assay.sensors.sidecar import Sidecar, start_sidecar

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined] # documented, but re-exported implicitly

STACK_SIGNAL = signal.SIGUSR2  # asks a rank for the stacks of all its threads; SIGUSR1 is Slurm's usual warning
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


@dataclass(frozen=True)
class Session:
    """What a script works with."""

    world: World
    device: Device
    recorder: Recorder


@contextlib.contextmanager
def session(options: ScriptOptions, script: str) -> Iterator[Session]:
    """Join the world, open this rank's record file, and leave cleanly whatever happens.

    Any error ends the process: with its one sentence on stderr and exit code 2 (bad input) or 1 (failure).
    """
    _die_with_parent()
    joined = False
    place: Placement | None = None
    recorder: Recorder | None = None
    sidecar: Sidecar | None = None
    try:
        place = placement(os.environ)
        _check_world(options, place)
        device = open_device(options.device, place.local_rank)
        backend = options.backend if options.backend != "auto" else default_backend(device)
        stacks = _answer_stack_requests(options.out, place.rank)
        # Now, so that it has come up by the time that the ranks have found each other.
        sidecar = start_sidecar(options.out, place, device.type, device.name, os.environ)
        world = _join(place, backend, device, options.join_timeout)
        joined = True
        recorder = _open_recorder(options.out, script, world, device)
        yield Session(world, device, recorder)
        sidecar.stop(recorder)
        recorder.close()
        _leave(joined)
        if stacks:
            stacks.close()
    except KeyboardInterrupt:
        _end(INTERRUPTED_EXIT, "interrupted", place, recorder, sidecar, joined)
    except AssayError as error:
        _end(error.exit_code, str(error), place, recorder, sidecar, joined)
    except Exception as error:
        traceback.print_exc()
        _end(RUN_FAILED_EXIT, f"{type(error).__name__}: {first_line(str(error))}", place, recorder, sidecar, joined)


def first_line(text: str) -> str:
    """The first line of a message that may be long, at most 300 characters."""
    line = text.strip().splitlines()[0] if text.strip() else "no message"
    return line if len(line) <= 300 else line[:297] + "..."


def _end(
    code: int,
    sentence: str,
    place: Placement | None,
    recorder: Recorder | None,
    sidecar: Sidecar | None,
    joined: bool,
) -> None:
    if recorder is not None:
        with contextlib.suppress(AssayError):  # the disk that refuses may be the error being told
            recorder.flush()
    print(f"{SENTENCE_MARK}rank {place.rank if place else '?'}: {sentence}", file=sys.stderr, flush=True)
    if sidecar is not None:
        sidecar.stop(recorder)
    _leave(joined)
    sys.stdout.flush()
    # Threads of a backend may keep a broken process alive for minutes; all that matters is written by now.
    os._exit(code)


def _check_world(options: ScriptOptions, place: Placement) -> None:
    # Every rank finds the same fault; rank 0 says it, once. The others give it the time to do so, because a launcher
    # ends all ranks when the first has gone.
    try:
        options.check_world(place.world)
    except ValueError as error:
        if place.rank == 0:
            print(f"{SENTENCE_MARK}{error}", file=sys.stderr, flush=True)
        else:
            time.sleep(2.0)
        os._exit(BadInput.exit_code)


def _leave(joined: bool) -> None:
    if not joined:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
    leaving.start()
    leaving.join(LEAVE_SECONDS)  # with a dead peer some backends wait for ever


def _join(place: Placement, backend: str, device: Device, limit: float) -> World:
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


def _open_recorder(out: Path | None, script: str, world: World, device: Device) -> Recorder:
    header = Header(
        rank=world.rank,
        world=world.size,
        local_rank=world.local_rank,
        local_world=world.local_size,
        host=platform.node(),
        pid=os.getpid(),
        clock_id=machine.clock_id(),
        device=device.type,
        device_name=device.name,
        backend=world.backend,
        script=script,
        monotonic=time.monotonic(),
        wall=time.time(),
        about=_about(device),
    )
    path = out / f"rank-{world.rank:05d}.jsonl" if out else None
    if path is not None and path.exists():
        raise BadInput(f"--out {out}: holds records of another run already; give a new folder")
    try:
        return Recorder(path, header)
    except OSError as error:
        raise BadInput(
            f"--out {out}: cannot be written ({(error.strerror or str(error)).lower()}); give another"
        ) from None


def _about(device: Device) -> dict[str, object]:
    import torch

    threads = torch.get_num_threads()
    return {
        **describe_build(),
        "threads": threads,
        "memory_method": device.memory_method,
        "code": str(Path(machine.__file__).parent),
    }


def _answer_stack_requests(out: Path | None, rank: int) -> IO[str] | None:
    # The file is opened now: a process that hangs can answer a signal, but not open files. Its pid in the name of the
    # file tells the launcher whom it may ask; before this line the signal would end the process.
    if out is None:
        return None
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / f"stacks-rank-{rank:05d}.pid-{os.getpid()}.txt").open("w")
    except OSError as error:
        raise BadInput(
            f"--out {out}: cannot be written ({(error.strerror or str(error)).lower()}); give another"
        ) from None
    faulthandler.register(STACK_SIGNAL, file=file, all_threads=True)
    return file


def _die_with_parent() -> None:
    # torchrun killed with -9 leaves its ranks alive; the kernel can end them with it (Linux).
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    # What has died while this process was still importing is not announced any more.
    lifeline = os.environ.get("ASSAY_LIFELINE", "")
    if os.getppid() == 1 or (lifeline and not Path(f"/proc/{lifeline}").exists()):
        os._exit(RUN_FAILED_EXIT)
