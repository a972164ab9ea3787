"""Hosts of their own on one machine: processes, mounts, name and network of each are its own. They meet on one switch.

The switch is the parent of all hosts' process namespaces, so the kernel ends every process of all hosts with it, and
takes networks, mounts and interfaces away as well: nothing of this has a name outside, and nothing can be left behind.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# /proc/self, read before the new /proc is mounted, is this process as the world outside counts it.
_SWITCH = """
set -e
read -r pid rest </proc/self/stat
mount -t proc proc /proc
ip link add bridge0 type bridge
ip link set bridge0 up
trap '' CHLD
echo "$pid"
exec "$@" >/dev/null 2>&1
"""

# The first process of a host only sleeps. It ignores CHLD, so that the kernel reaps what has lost its parent. A new
# /sys shows the host's own network cards; slurmd wants to find control groups in it all the same.
_HOST = """
set -e
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/cgroup /run/sshd
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --move /run/cgroup /sys/fs/cgroup
rmdir /run/cgroup
echo "$1" >/proc/sys/kernel/hostname
ip link set lo up
shift
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
trap '' CHLD
echo "$pid"
exec sleep infinity >/dev/null 2>&1
"""

_NEW = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child=KILL"]
_COMMANDS = {"unshare": "util-linux", "nsenter": "util-linux", "mount": "mount", "ip": "iproute2", "tc": "iproute2"}


@dataclass(frozen=True)
class Host:
    """A host. init: its first process; space: the number of its process namespace; switch: the switch's first process.

    port: the switch's end of the host's cable.
    """

    name: str
    address: str
    init: int
    space: int
    switch: int
    port: str

    def inside(self, argv: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
        """The argv that runs `argv` on this host, in the folder `cwd` as this host sees it."""
        enter = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--net", "--pid", "--"]
        return [*enter, "env", f"--chdir={cwd or Path.cwd()}", *map(str, argv)]

    @property
    def on(self) -> bool:
        """Whether its first process lives, and is ours and no later one of the same number."""
        return _namespace(self.init) == self.space


class Entered(subprocess.Popen[str]):
    """A command started by Host.inside. Signals go to the command itself, and not to the nsenter that waits for it."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command on the host."""
        deadline = time.monotonic() + 5
        while self.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.pid).children():
                    child.send_signal(sig)
                    return
            if time.monotonic() > deadline:
                super().send_signal(sig)
            time.sleep(0.005)


def needs(commands: dict[str, str]) -> None:
    """Check for root and for commands, given with their Debian packages. Raises RuntimeError, which names what to do."""
    if os.geteuid():
        raise RuntimeError("hosts of their own need root: network namespaces are made for them; run this as root")
    missing = {command: package for command, package in {**_COMMANDS, **commands}.items() if not shutil.which(command)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise RuntimeError(f"{', '.join(missing)}: not installed; on Debian: apt-get install {packages}")


def start_switch(*, tied: bool) -> tuple[subprocess.Popen[str], tuple[int, int]]:
    """Start a switch; returns what waits for its end, and its first process. tied: it ends when this process does."""
    # cat ends with its input, whose other end closes with this process, however it ends.
    life = ["cat"] if tied else ["sleep", "infinity"]
    waiting = _start([*_NEW, "--", "sh", "-c", _SWITCH, "switch", *life], stdin=subprocess.PIPE if tied else None)
    first = _announced(waiting, "the switch")
    return waiting, (first, _namespace(first))


def start_host(
    switch: int, name: str, address: str, binds: Iterable[tuple[Path, Path]]
) -> tuple[subprocess.Popen[str], Host]:
    """Start a host and plug it in; returns what waits for its end, too. binds: (what, over which path) it sees there."""
    enter = ["nsenter", "--target", str(switch), "--pid", "--", *_NEW, "--", "sh", "-c", _HOST, "host", name]
    waiting = _start([*enter, *(str(path) for pair in binds for path in pair)])
    init = _announced(waiting, name)
    host = Host(name, address, init, _namespace(init), switch, f"p-{name}")
    # As a real card, it has the same address after each power-on: others remember it.
    card = "02:" + ":".join(f"{int(part):02x}" for part in ("0", *address.split(".")))
    _ip(switch, f"link add {host.port} type veth peer name eth0 address {card} netns {init}")
    _ip(switch, f"link set {host.port} master bridge0 up")
    _ip(init, f"addr add {address}/16 dev eth0", "link set eth0 up")
    return waiting, host


def set_link(host: Host, *, up: bool) -> None:
    """Plug the host's cable in, or pull it."""
    _ip(host.switch, f"link set {host.port} {'up' if up else 'down'}")


def end_host(host: Host) -> None:
    """Power off: the others see silence and no farewell. Returns when its last process is gone."""
    set_link(host, up=False)
    end(host.init, host.space)
    # The interface goes with the namespace, but later, and the port's name is wanted again.
    subprocess.run(_in_network(host.switch, "ip", "link", "del", host.port), capture_output=True, check=False)


def end(init: int, space: int) -> None:
    """End a namespace by its first process; returns when it is gone. Another process of that number is left alone."""
    deadline = time.monotonic() + 10
    if _namespace(init) == space:
        os.kill(init, signal.SIGKILL)
    while _namespace(init) == space:
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {init} did not end within 10 s of its SIGKILL")
        time.sleep(0.005)


def reap(waiting: Iterable[subprocess.Popen[str]]) -> None:
    """Wait for children of this process whose namespaces were ended."""
    for process in waiting:
        if process.stdin:
            process.stdin.close()
        process.wait(10)


def limit(host: Host, rate: str, *, inwards: bool = False) -> None:
    """Let a host send no faster than `rate` (as tc writes it: 100mbit), with a token bucket. inwards: receive, too."""
    bucket = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms"]
    for space, device in [(host.init, "eth0"), *([(host.switch, host.port)] if inwards else [])]:
        _run(_in_network(space, "tc", "qdisc", "replace", "dev", device, *bucket))


def _in_network(process: int, *argv: str) -> list[str]:
    return ["nsenter", "--target", str(process), "--net", "--", *argv]


def _ip(process: int, *lines: str) -> None:
    _run(_in_network(process, "ip", "-batch", "-"), "\n".join(lines))


def _run(argv: list[str], text: str | None = None) -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join([*argv, text or '']).strip()}: {done.stderr.strip()}")


def _start(argv: list[str], stdin: int | None = None) -> subprocess.Popen[str]:
    into = subprocess.DEVNULL if stdin is None else stdin
    pipe = subprocess.PIPE
    # A session of its own: a Ctrl-C in the terminal is for the command that runs there, not for the hosts.
    return subprocess.Popen(argv, stdin=into, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def _announced(waiting: subprocess.Popen[str], name: str) -> int:
    """The first process of a new namespace, which tells its number when all is set up."""
    assert waiting.stdout is not None
    assert waiting.stderr is not None
    with waiting.stdout as out, waiting.stderr as err:
        told = out.readline().strip()
        if told:
            return int(told)
        waiting.wait()
        raise RuntimeError(f"{name} did not start: {err.read().strip()}; it needs root with all capabilities")


def _namespace(process: int) -> int:
    try:
        return os.stat(f"/proc/{process}/ns/pid").st_ino  # noqa: PTH116 - follows a link that is none on disk
    except OSError:
        return 0
