"""The host as its kernel shows it: small files below a root, which tests plant, and the environment."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Space:
    """Bytes of a file system: all, and those that are free for this user."""

    total: int
    free: int


def space_of(path: Path) -> Space:
    """The space of the file system that holds `path`. Raises OSError if it cannot be asked."""
    usage = shutil.disk_usage(path)
    return Space(usage.total, usage.free)


@dataclass(frozen=True)
class Host:
    """Where checks read from. root: holds proc, sys and dev; space: asks a file system for its bytes."""

    root: Path = Path("/")
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    space: Callable[[Path], Space] = space_of

    def text(self, path: str) -> str | None:
        """A small file below the root without surrounding blanks; None if it is not there or may not be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file that holds one whole number; None if it is not there or holds something else."""
        return whole(self.text(path))

    def table(self, path: str) -> dict[str, int]:
        """Lines of a name (a colon behind it or not) and a whole number, such as /proc/meminfo; others are left out."""
        rows = {}
        for line in (self.text(path) or "").splitlines():
            words = line.replace(":", " ").split()
            number = whole(words[1]) if len(words) > 1 else None
            if number is not None:
                rows[words[0]] = number
        return rows

    def below(self, pattern: str) -> list[str]:
        """Paths below the root that match a glob pattern, in order."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))


def whole(text: str | None) -> int | None:
    """The whole number that `text` is; None for anything else."""
    try:
        return int(text or "")
    except ValueError:
        return None


def core_list(text: str | None) -> frozenset[int] | None:
    """Cores of a kernel's list: `0-3,8` → {0, 1, 2, 3, 8}; None if it is no such list."""
    cores: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.strip().partition("-")
        low, high = whole(first), whole(last) if dash else whole(first)
        if low is None or high is None or not 0 <= low <= high:
            return None
        cores |= set(range(low, high + 1))
    return frozenset(cores)


def status_field(host: Host, name: str) -> str | None:
    """One field of this process's /proc/self/status."""
    for line in (host.text("proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return None


def online_cores(host: Host) -> frozenset[int] | None:
    """Cores that the kernel runs; None where it does not say."""
    return core_list(host.text("sys/devices/system/cpu/online"))


def allowed_cores(host: Host) -> frozenset[int] | None:
    """Cores that this process may run on; None where the kernel does not say."""
    return core_list(status_field(host, "Cpus_allowed_list"))


def is_virtual(host: Host) -> bool:
    """Whether the processor says that a hypervisor runs it (x86; others do not tell)."""
    lines = (host.text("proc/cpuinfo") or "").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "hypervisor" in flags.split()


def why_hidden(host: Host) -> str:
    """Why a file about the hardware is missing, as far as it is known."""
    return "the hypervisor hides it" if is_virtual(host) else "this kernel does not offer it"
