"""Counters of the kernel at one moment. What goes on is the difference of two snapshots."""

from collections.abc import Mapping
from dataclasses import dataclass

from assay.doctor import cgroup
from assay.doctor.host import Host, whole


@dataclass(frozen=True)
class CoreTimes:
    """Ticks that one core has spent since boot. stolen: it had work, but the hypervisor ran somebody else."""

    busy: int
    idle: int
    stolen: int | None


@dataclass(frozen=True)
class ProcessTime:
    """Ticks of processor time that one process has used; `started` tells a process from a later one of its number."""

    pid: int
    name: str
    started: int
    ticks: int


@dataclass(frozen=True)
class Snapshot:
    """One moment. me: this process's number. swapped: pages moved to and from disk since boot. throttled: periods cut
    short by a processor quota. heated: counters of slowing down by heat, added up. None: the kernel does not tell.
    """

    cores: Mapping[int, CoreTimes]
    processes: Mapping[int, ProcessTime]
    me: int | None
    swapped: int | None
    throttled: int | None
    heated: int | None


def take(host: Host) -> Snapshot:
    """Read the counters. Takes milliseconds, some more where thousands of processes run."""
    memory = host.table("proc/vmstat")
    pages = (memory.get("pswpin"), memory.get("pswpout"))
    return Snapshot(
        cores=_cores(host.text("proc/stat") or ""),
        processes=_processes(host),
        me=whole((host.text("proc/self/stat") or "").partition(" ")[0]),
        swapped=None if pages[0] is None or pages[1] is None else pages[0] + pages[1],
        throttled=cgroup.throttled_periods(host),
        heated=_heated(host),
    )


def _cores(text: str) -> dict[int, CoreTimes]:
    found = {}
    for line in text.splitlines():
        name, *words = line.split() or [""]
        core = whole(name.removeprefix("cpu")) if name.startswith("cpu") else None
        ticks = [whole(word) for word in words]
        if core is None or len(ticks) < 7 or None in ticks:
            continue
        # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is part of user's.
        user, nice, system, idle, waiting, irq, softirq = (tick or 0 for tick in ticks[:7])
        stolen = ticks[7] if len(ticks) > 7 else None
        found[core] = CoreTimes(user + nice + system + irq + softirq, idle + waiting, stolen)
    return found


def _processes(host: Host) -> dict[int, ProcessTime]:
    found = {}
    for path in host.below("proc/[0-9]*/stat"):
        # pid (name) state …; the name may hold blanks and brackets. Fields 14, 15, 22: user, system, start.
        head, _, tail = (host.text(path) or "").rpartition(")")
        pid, _, name = head.partition(" (")
        words = tail.split()
        ticks = [whole(words[place]) for place in (11, 12, 19)] if len(words) > 19 else []
        number = whole(pid)
        if number is not None and ticks and None not in ticks:
            user, system, started = (tick or 0 for tick in ticks)
            found[number] = ProcessTime(number, name, started, user + system)
    return found


def _heated(host: Host) -> int | None:
    # Every core repeats its package's events. The sum is no number of events, but it grows when one happens.
    paths = host.below("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [host.number(path) for path in paths]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
