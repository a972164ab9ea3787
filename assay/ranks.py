"""A rank's life, from joining the world to leaving it: one door for torchrun, Slurm, Open MPI and MPICH.

with session(options, "comms/bench") as here:
    ... here.world, here.device, here.recorder ...
"""

import contextlib
import ctypes
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assay import machine
from assay.device import Device, default_backend, describe_build, open_device
from assay.errors import INTERRUPTED_EXIT, REPEAT_SECONDS, RUN_FAILED_EXIT, SENTENCE_MARK, AssayError, BadInput
from assay.hang_watch import answer_stack_requests
from assay.options.base import ScriptOptions
from assay.placement import Placement, placement
from assay.record import Header
from assay.recorder import Recorder
from assay.sensors.sidecar import Sidecar, start_sidecar
from assay.world import MPI_BACKEND, World, first_line, join, join_mpi, join_torch, leave, meet_over_mpi, mpi_placement


@dataclass(frozen=True)
class Session:
    """What a script works with."""

    world: World
    device: Device
    recorder: Recorder


@contextlib.contextmanager
def session(options: ScriptOptions, script: str) -> Iterator[Session]:
    """Join the world, open this rank's record file, and leave cleanly whatever happens.

    Any error ends the process: with its one sentence on stderr and exit code 2 (bad input) or 1 (failure). Without one,
    ranks that torch.distributed joined end here too, with exit code 0: nothing behind the session runs.
    """
    _die_with_parent()
    joined = False
    place: Placement | None = None
    recorder: Recorder | None = None
    sidecar: Sidecar | None = None
    try:
        comm = None
        place = placement(os.environ)
        if options.needs_mpi:
            place, comm = mpi_placement()
        _check_world(options, place)
        device = open_device(options.device, place.local_rank)
        backend = options.torch_backend if options.torch_backend != "auto" else default_backend(device)
        stacks = answer_stack_requests(options.out, place.rank) if options.out else None
        # Now, so that it has come up by the time that the ranks have found each other.
        sidecar = start_sidecar(options.out, place, device.type, device.name, os.environ)
        if comm is not None:
            world = join_mpi(comm, place, backend if options.backend_is_torch else MPI_BACKEND)
            _check_agreement(options, world)  # before some look for others who do not come
            if options.needs_torch and place.world > 1:
                meet_over_mpi(comm)
                join_torch(place, backend, device, options.join_timeout)
        else:
            world = join(place, backend, device, options.join_timeout)
        joined = True
        _check_agreement(options, world)
        recorder = _open_recorder(options.out, script, world, device)
        yield Session(world, device, recorder)
        sidecar.stop(recorder)
        recorder.close()
        grouped = leave()
        if stacks:
            stacks.close()
        if grouped:
            _depart()
    except KeyboardInterrupt:
        _end(INTERRUPTED_EXIT, "interrupted", place, recorder, sidecar, joined)
    except AssayError as error:
        _end(error.exit_code, str(error), place, recorder, sidecar, joined)
    except Exception as error:
        traceback.print_exc()
        _end(RUN_FAILED_EXIT, f"{type(error).__name__}: {first_line(str(error))}", place, recorder, sidecar, joined)


def _depart() -> None:
    """End the process as a success, without tearing the interpreter down.

    A thread of gloo may still hold the tensors of the last call. If it lets go of them during the tear-down, it wants the
    interpreter's lock, and the process aborts: a rank that had measured everything would be a failed one.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and not mpi.Is_finalized():
        mpi.Finalize()  # or mpirun takes the end for a crash
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


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
    if code == BadInput.exit_code and place is not None and place.rank > 0:
        # Most often every rank finds the same fault. Rank 0 says it; the launcher then ends the others before they do.
        time.sleep(REPEAT_SECONDS)
    print(f"{SENTENCE_MARK}rank {place.rank if place else '?'}: {sentence}", file=sys.stderr, flush=True)
    if sidecar is not None:
        sidecar.stop(recorder)
    if joined:
        leave()
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
            time.sleep(REPEAT_SECONDS)
        os._exit(BadInput.exit_code)


def _check_agreement(options: ScriptOptions, world: World) -> None:
    # Ranks that were started with other options meet in different calls, and hang there.
    own = options.model_dump(mode="json")
    first = world.broadcast(own)
    key = next((key for key, value in first.items() if own.get(key) != value), None)
    fault = ""
    if key is not None:
        fault = (
            f"--{key.replace('_', '-')}: rank {world.rank} on {world.hosts[world.rank]} was given {own.get(key)}, "
            f"rank 0 {first[key]}; start every rank with the same arguments"
        )
    told = world.first_said(fault)
    if told:
        raise BadInput(told)


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


def _die_with_parent() -> None:
    # torchrun killed with -9 leaves its ranks alive; the kernel can end them with it (Linux).
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    # What has died while this process was still importing is not announced any more.
    lifeline = os.environ.get("ASSAY_LIFELINE", "")
    if os.getppid() == 1 or (lifeline and not Path(f"/proc/{lifeline}").exists()):
        os._exit(RUN_FAILED_EXIT)
