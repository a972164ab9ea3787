"""The command line of one process of the pre-flight."""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from assay.errors import INTERRUPTED_EXIT, RUN_FAILED_EXIT, SENTENCE_MARK, AssayError, BadInput
from assay.layout import expand_hosts
from assay.placement import placement
from assay.preflight.first import gather
from assay.preflight.guest import join
from assay.preflight.judge import CLOCK_BOUND, FREE_BYTES, Wanted, verdict
from assay.preflight.meeting import Setting
from assay.preflight.screen import show
from assay.preflight.start import TOKEN_VARIABLE, token_of
from assay.preflight.surroundings import named, seats
from assay.rundir import write_document
from assay.units import format_size, parse_size

T = TypeVar("T")


@dataclass(frozen=True)
class Command:
    """What one process does, and what the first one asks of all and writes."""

    setting: Setting
    wanted: Wanted
    json: Path | None


def main(words: Sequence[str] | None = None) -> int:
    """Take part in a pre-flight; the exit code: 0 ready (or, elsewhere than on the first host, over), 1 not, 2 bad input."""
    try:
        command = read(sys.argv[1:] if words is None else words, os.environ)
        # Programs that are started from here (git, torch) need not know it.
        os.environ.pop(TOKEN_VARIABLE, None)
        return run(command)
    except AssayError as error:
        print(f"{SENTENCE_MARK}{error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED_EXIT


def run(command: Command) -> int:
    """The pre-flight from its beginning to its end. Raises AssayError as `join` and `gather` do."""
    setting = command.setting
    if setting.index:
        asyncio.run(_interruptible(join(setting)))
        return 0
    when, begun = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic()
    heard = asyncio.run(_interruptible(gather(setting)))
    found = verdict(heard, command.wanted, setting.where, seconds=time.monotonic() - begun, when=when)
    show(found)
    if command.json is not None:
        write_document(command.json, found.document())
    return 0 if found.ready else RUN_FAILED_EXIT


async def _interruptible(part: Awaitable[T]) -> T:
    # Schedulers end a job with SIGTERM. As a cancellation it arrives where the part waits, never within its cleaning up.
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await part


def read(words: Sequence[str], env: Mapping[str, str]) -> Command:
    """The command line and the environment of one process. Raises BadInput."""
    args = _parser().parse_args(words)
    token = token_of(env)
    hosts = tuple(expand_hosts(args.hosts))
    twice = next((host for host in hosts if hosts.count(host) > 1), None) if len(set(hosts)) < len(hosts) else None
    if not hosts or twice is not None:
        raise BadInput(
            f"--hosts {args.hosts!r}: {f'{twice} is named twice' if twice else 'names no host'}; name each once"
        )
    host, port = _meet(args.meet)
    setting = Setting(
        index=_index(env, hosts),
        hosts=hosts,
        host=host,
        port=port,
        token=token,
        folder=args.folder,
        interface=args.interface,
        wait=_positive("--wait", args.wait),
        torch=args.torch,
        env={name: value for name, value in env.items() if name != TOKEN_VARIABLE},
    )
    if args.devices is not None and args.devices < 0:
        raise BadInput(f"--devices {args.devices}: should be a number of devices, 0 or more")
    if args.json is not None and setting.index == 0 and not args.json.absolute().parent.is_dir():
        raise BadInput(f"--json {args.json}: its folder is not there; make it, or give another")
    wanted = Wanted(args.devices, args.free, _positive("--clock-bound", args.clock_bound))
    return Command(setting, wanted, args.json)


def _index(env: Mapping[str, str], hosts: Sequence[str]) -> int:
    place = placement(env)
    if place.world != len(hosts):
        found = seats(env)
        told = ", ".join(named(seat) for seat in found) or "no launcher's variables are set"
        raise BadInput(
            f"--hosts names {len(hosts)} hosts, but {place.world} {'process was' if place.world == 1 else 'processes were'} "
            f"started ({told}); start one process on each host, by one launcher"
        )
    return place.rank


def _meet(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise BadInput(f"--meet {text!r}: should be HOST:PORT of the first host, such as node1:29600")
    return host, int(port)


def _positive(name: str, seconds: float) -> float:
    if not 0 < seconds < float("inf"):
        raise BadInput(f"{name} {seconds}: should be a number of seconds above 0")
    return seconds


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m assay.preflight",
        description="Before a long job: is every host ready? One process a host, started by srun, mpirun or by hand.",
        epilog=f"All processes need the same secret in {TOKEN_VARIABLE}.",
    )
    add = parser.add_argument
    add("--meet", required=True, metavar="HOST:PORT", help="where the first host listens")
    add("--hosts", required=True, help="all hosts, the first one first: node1,node2 or node[1-8]")
    add("--devices", type=int, help="accelerators that each host must have [any number]")
    add("--folder", type=Path, default=Path(), help="where results go [the working folder]")
    add("--free", type=_size, default=FREE_BYTES, help=f"room that must be there [{format_size(FREE_BYTES)}]")
    add("--clock-bound", type=float, default=CLOCK_BOUND, help=f"seconds that clocks may differ [{CLOCK_BOUND:g}]")
    add("--interface", help="network interface that ranks will use [by GLOO_, NCCL_SOCKET_IFNAME, or the route]")
    add("--wait", type=float, default=10.0, help="seconds to wait for the other hosts [10]")
    add("--json", type=Path, help="file that the first host writes everything into")
    add("--torch", action="store_true", help="count devices by torch, which takes as long as importing it")
    return parser
