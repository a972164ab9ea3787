"""Hosts of their own on one machine: network namespaces on a bridge, each with its host name. Needs root and iproute2.

with lab(4) as hosts:
    limit(hosts[2], "100mbit")
    done = run_ranks(hosts, "comms/links.py")
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.conftest import ROOT, environment

_NUMBERS = count(1)  # of labs made by this process
PORT = 29500  # free in every new namespace


@dataclass(frozen=True)
class Host:
    """A host of the lab. space: its network namespace; switch: the namespace that holds the bridge, port: its end there."""

    name: str
    address: str
    space: str
    switch: str
    port: str

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The argv that runs `argv` on this host, under its name and in its network."""
        named = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'
        return ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", named, self.name, *argv]


def ip(*args: str) -> None:
    """Run `ip`; a failure is an error that tells why."""
    done = subprocess.run(["ip", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")


@contextlib.contextmanager
def lab(size: int) -> Iterator[list[Host]]:
    """`size` hosts on one bridge, alone with each other. Gone with all their interfaces afterwards, whatever happens."""
    tag = f"lab-{os.getpid()}-{next(_NUMBERS)}"
    switch = f"{tag}-switch"
    hosts = [Host(f"host{n}", f"10.77.0.{n + 1}", f"{tag}-host{n}", switch, f"p{n}") for n in range(size)]
    made = []
    try:
        ip("netns", "add", switch)
        made.append(switch)
        ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge0", "up")
        for host in hosts:
            ip("netns", "add", host.space)
            made.append(host.space)
            ip("-n", switch, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.space)
            ip("-n", switch, "link", "set", host.port, "master", "bridge0", "up")
            ip("-n", host.space, "link", "set", "lo", "up")
            ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.space, "link", "set", "eth0", "up")
        yield hosts
    finally:
        # A namespace takes its interfaces with it, and a pair's other end too.
        for space in reversed(made):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def limit(host: Host, rate: str, *, inwards: bool = False) -> None:
    """Let a host send no faster than `rate` (as tc writes it: 100mbit), with a token bucket. inwards: receive, too."""
    ends = [(host.space, "eth0"), *([(host.switch, host.port)] if inwards else [])]
    for space, device in ends:
        bucket = ["tbf", "rate", rate, "burst", "64kb", "latency", "50ms"]
        subprocess.run(["tc", "-n", space, "qdisc", "add", "dev", device, "root", *bucket], check=True)


def run_ranks(
    hosts: Sequence[Host], script: str, *args: str | Path, seconds: float = 120
) -> list[subprocess.CompletedProcess[str]]:
    """One rank of a script of ours on each host, started by hand. Ends what is still running after `seconds`."""
    argv = [sys.executable, str(ROOT / script), *map(str, args)]
    shared = {"WORLD_SIZE": str(len(hosts)), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    shared |= {"MASTER_ADDR": hosts[0].address, "MASTER_PORT": str(PORT)}
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        running = []
        for rank, host in enumerate(hosts):
            # Files and not pipes: a rank must not wait for somebody to read what it prints.
            out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            process = subprocess.Popen(
                host.inside(argv), env=environment(RANK=str(rank), **shared), stdout=out, stderr=err, text=True
            )
            stack.callback(_end, process)
            running.append((process, out, err))
        for process, _, _ in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        done = []
        for process, out, err in running:
            _end(process)
            texts = [(file.seek(0), file.read())[1] for file in (out, err)]
            done.append(subprocess.CompletedProcess(argv, process.returncode, *texts))
    return done


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
