"""What control groups allow and count: processor time, memory, processes. Versions 1 and 2, and both side by side.

A limit of any ancestor binds, so every reading goes from this process's group up to the root that is visible here.
Inside a container the path of /proc/self/cgroup may not exist; what is mounted is then the container's own root.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from assay.doctor.host import Host, core_list, whole

_MOUNT = "sys/fs/cgroup"
_UNLIMITED = 1 << 60  # version 1 writes "no limit" as the largest number of pages


@dataclass(frozen=True)
class Groups:
    """The groups that bind this process for one controller, innermost first. version: 1 or 2."""

    version: int
    folders: tuple[str, ...]


def groups(host: Host, controller: str) -> Groups | None:
    """This process's groups of a controller (cpu, cpuset, memory, pids); None where the kernel shows none."""
    second: Groups | None = None
    for line in (host.text("proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            second = _found(host, 2, (_MOUNT, f"{_MOUNT}/unified"), path, "cgroup.controllers")
        elif controller in controllers.split(","):
            bases = (f"{_MOUNT}/{controllers}", f"{_MOUNT}/{controller}")
            return _found(host, 1, bases, path, "cgroup.procs")
    return second


def _found(host: Host, version: int, bases: tuple[str, ...], path: str, mark: str) -> Groups | None:
    base = next((base for base in bases if host.text(f"{base}/{mark}") is not None), None)
    if base is None:
        return None
    inner = PurePosixPath(path.lstrip("/"))
    # A namespace writes what lies above its own root with "..": that is not visible here.
    levels = [level for level in (inner, *inner.parents) if level.parts and ".." not in level.parts]
    folders = [*(f"{base}/{level}" for level in levels), base]
    return Groups(version, tuple(folder for folder in folders if os.access(host.root / folder, os.F_OK)))


def quota_cores(host: Host) -> float | None:
    """Cores' worth of time that the tightest group grants; None without a quota."""
    here = groups(host, "cpu")
    grants = list(_grants(host, here)) if here else []
    return min(grants, default=None)


def _grants(host: Host, here: Groups) -> Iterator[float]:
    for folder in here.folders:
        if here.version == 2:
            words = (host.text(f"{folder}/cpu.max") or "").split()
            granted, period = (whole(words[0]), whole(words[1])) if len(words) == 2 else (None, None)
        else:
            granted, period = host.number(f"{folder}/cpu.cfs_quota_us"), host.number(f"{folder}/cpu.cfs_period_us")
        if granted is not None and granted > 0 and period:
            yield granted / period


def throttled_periods(host: Host) -> int | None:
    """Periods in which a group's quota ran out, counted since each group was made; None where nothing counts them."""
    here = groups(host, "cpu")
    counts = [host.table(f"{folder}/cpu.stat").get("nr_throttled") for folder in here.folders] if here else []
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class Room:
    """Bytes of the tightest memory limit, and how much of it is left. Cache that can be dropped counts as left."""

    limit: int
    left: int


def memory_room(host: Host) -> Room | None:
    """What memory limits leave; None without a limit."""
    here = groups(host, "memory")
    rooms = list(_rooms(host, here)) if here else []
    return min(rooms, key=lambda room: room.left, default=None)


def _rooms(host: Host, here: Groups) -> Iterator[Room]:
    limit_file, used_file, cache = (
        ("memory.max", "memory.current", "inactive_file")
        if here.version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    for folder in here.folders:
        limit, used = host.number(f"{folder}/{limit_file}"), host.number(f"{folder}/{used_file}")
        if limit is not None and used is not None and limit < _UNLIMITED:
            dropped = host.table(f"{folder}/memory.stat").get(cache, 0)
            yield Room(limit, max(0, limit - max(0, used - dropped)))


def processes_left(host: Host) -> int | None:
    """Processes and threads that the tightest group still allows; None without a limit."""
    here = groups(host, "pids")
    left = []
    for folder in here.folders if here else ():
        most, now = host.number(f"{folder}/pids.max"), host.number(f"{folder}/pids.current")
        if most is not None and now is not None:
            left.append(most - now)
    return min(left, default=None)


def cpuset(host: Host) -> frozenset[int] | None:
    """Cores that the groups allow; None where they do not say."""
    here = groups(host, "cpuset")
    for folder in here.folders if here else ():
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            cores = core_list(host.text(f"{folder}/{name}"))
            if cores:
                return cores
    return None
