"""Checks of memory: what is free, what lies on disk, and the memory that processes share."""

import re

from assay.doctor.cgroup import groups, memory_room
from assay.doctor.finding import Finding, State
from assay.doctor.host import Host
from assay.doctor.snapshot import Snapshot
from assay.units import format_si

# A rank holds 0.2 GB for torch alone (a build for the CPU; others need more), and the smallest suite starts two.
LEFT_WARN, LEFT_BAD = 4 << 30, 1 << 30
SWAPPED_WARN = (
    256 << 20
)  # pages that nothing has touched for days may lie on disk without harm; more than that is a trend
# Backends and data loaders pass buffers through /dev/shm. 64 MiB is docker's default and holds a few channels of two
# ranks; a channel of NCCL takes about 10 MB, a batch of a loader some MB.
SHARED_WARN, SHARED_BAD = 1 << 30, 64 << 20


def memory(host: Host) -> Finding:
    """What the kernel can still give without swapping."""
    table = host.table("proc/meminfo")
    left, total = table.get("MemAvailable"), table.get("MemTotal")
    if left is None or total is None:
        return Finding("memory", "unknown", "no MemAvailable in /proc/meminfo")
    return _judged("memory", left * 1024, total * 1024, "stop what holds it (ps --sort=-rss aux)")


def memory_limit(host: Host) -> Finding:
    """What this container or job may still take."""
    if groups(host, "memory") is None:
        return Finding("memory limit", "unknown", "no control group for memory is visible here")
    room = memory_room(host)
    if room is None:
        return Finding("memory limit", "good", "none")
    return _judged("memory limit", room.left, room.limit, "raise the limit (docker --memory, the job's memory)")


def _judged(check: str, left: int, total: int, advice: str) -> Finding:
    state: State = "bad" if left < LEFT_BAD else "warn" if left < LEFT_WARN else "good"
    found = f"{format_si(left, 'B')} of {format_si(total, 'B')} left"
    return Finding(check, state, found, "" if state == "good" else advice)


def swap(host: Host, before: Snapshot, after: Snapshot) -> Finding:
    """Whether pages go to disk and back now, or lie there already."""
    moved = None if before.swapped is None or after.swapped is None else after.swapped - before.swapped
    if moved:
        return Finding(
            "swap", "bad", f"{moved:,} pages moved to or from disk during this check", "stop what holds memory, first"
        )
    table = host.table("proc/meminfo")
    total, free = table.get("SwapTotal"), table.get("SwapFree")
    if total is None or free is None or moved is None:
        return Finding("swap", "unknown", "no swap counters in /proc/meminfo and /proc/vmstat")
    used = (total - free) * 1024
    if used > SWAPPED_WARN:
        advice = "swapoff -a && swapon -a, once there is room in memory"
        return Finding("swap", "warn", f"{format_si(used, 'B')} lie on disk and may have to come back", advice)
    return Finding("swap", "good", f"{format_si(used, 'B')} in use" if used else "none in use" if total else "none")


def huge_pages(host: Host) -> Finding:
    """Transparent huge pages. Told only: which setting is faster depends on the work."""
    match = re.search(r"\[(\w+)\]", host.text("sys/kernel/mm/transparent_hugepage/enabled") or "")
    if match is None:
        return Finding("huge pages", "unknown", "no transparent_hugepage in /sys: this kernel does not offer it")
    return Finding("huge pages", "good", f"transparent ones: {match[1]}")


def shared_memory(host: Host) -> Finding:
    """The size of /dev/shm, through which ranks of a host and the workers of data loaders hand buffers."""
    try:
        space = host.space(host.root / "dev/shm")
    except OSError:
        return Finding("shared memory", "unknown", "no /dev/shm here")
    found = f"{format_si(space.free, 'B')} of {format_si(space.total, 'B')} free in /dev/shm"
    if space.free >= SHARED_WARN:
        return Finding("shared memory", "good", found)
    state: State = "bad" if space.free <= SHARED_BAD else "warn"
    full = space.total >= SHARED_WARN
    advice = "remove what was left there" if full else "docker --shm-size=8g, or mount -o remount,size=8g /dev/shm"
    return Finding("shared memory", state, found, advice)
