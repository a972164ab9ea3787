"""Hosts and their network alone, without a Slurm: ranks are started by hand on each.

with lab(4) as hosts:
    limit(hosts[2], "100mbit")
    done = run_ranks(hosts, "comms/links.py")
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.cluster.hosts import Entered, Host, end, limit, needs, reap, start_host, start_switch
from tests.conftest import ROOT, environment

__all__ = ["Host", "lab", "limit", "run_ranks"]

PORT = 29500  # free in every new namespace


@contextlib.contextmanager
def lab(size: int) -> Iterator[list[Host]]:
    """`size` hosts on one switch, alone with each other. Gone with all their interfaces afterwards, whatever happens."""
    needs({})
    process, switch = start_switch(tied=True)
    waiting, hosts = [process], []
    try:
        for number in range(size):
            process, host = start_host(switch[0], f"host{number}", f"10.77.0.{number + 1}", [])
            waiting.append(process)
            hosts.append(host)
        yield hosts
    finally:
        end(*switch)
        reap(waiting)


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
            variables = environment(RANK=str(rank), **shared)
            process = Entered(host.inside(argv), env=variables, stdout=out, stderr=err, text=True)
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


def _end(process: Entered) -> None:
    process.kill()
    process.wait()
