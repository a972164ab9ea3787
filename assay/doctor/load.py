"""Checks of what else runs: other processes, other guests of the hypervisor, and the quota of this container."""

import math
from collections.abc import Collection

from assay.doctor.cgroup import groups, quota_cores
from assay.doctor.finding import Finding, State, share
from assay.doctor.host import Host, allowed_cores
from assay.doctor.snapshot import CoreTimes, Snapshot
from assay.report.quantities import count_of

# Ranks use every core and wait for the slowest, so what others take of the cores shows in every step. One part in
# twenty is as much as the differences that a suite is asked to tell; at a third, most of a figure's spread is theirs.
OTHERS_WARN, OTHERS_BAD = 0.05, 0.30
CORE_WARN = 0.50  # of one core: the rank on it is half as fast, and all others wait for it
# What a hypervisor takes cannot be seen by the ranks at all. It comes in slices of milliseconds: one part in a hundred
# is enough to make a p99, and at one in ten every step has met one.
STOLEN_WARN, STOLEN_BAD = 0.01, 0.10
_NAMED = 3  # busiest processes that are named
_NOTICED = 0.05  # of a core, below which a process is not named


def other_load(host: Host, before: Snapshot, after: Snapshot) -> Finding:
    """What other processes take of the usable cores. Between the snapshots this process must have rested."""
    used = _differences(host, before, after)
    total = sum(core.busy + core.idle + (core.stolen or 0) for core in used)
    if not total:
        return Finding("other load", "unknown", "the counters of /proc/stat are missing or do not move")
    mine = _ticks_of(after.me, before, after)
    others = max(0, sum(core.busy for core in used) - mine) / total
    busiest = max(core.busy / max(core.busy + core.idle + (core.stolen or 0), 1) for core in used)
    found = f"others take {share(others)} of {count_of(len(used), 'core')}"
    if others <= OTHERS_WARN and busiest <= CORE_WARN:
        return Finding("other load", "good", found)
    if others <= OTHERS_WARN:
        found += f", {share(busiest)} of one of them"
    names = _busiest(before, after, total / len(used))
    who = f": {names}" if names else ", by processes that have ended since or cannot be seen from here"
    state: State = "bad" if others > OTHERS_BAD else "warn"
    return Finding("other load", state, found + who, "stop other work, or take the machine alone; then look again")


def stolen_time(host: Host, *spans: tuple[Snapshot, Snapshot]) -> Finding:
    """What a hypervisor gave to others although a core of ours had work; the worst of several spans counts."""
    worst: float | None = None
    for before, after in spans:
        used = _differences(host, before, after)
        total = sum(core.busy + core.idle + (core.stolen or 0) for core in used)
        if total and all(core.stolen is not None for core in used):
            worst = max(worst or 0.0, sum(core.stolen or 0 for core in used) / total)
    if worst is None:
        return Finding("stolen time", "unknown", "no steal column in /proc/stat, or it does not move")
    if worst <= STOLEN_WARN:
        return Finding("stolen time", "good", share(worst) if worst else "none")
    return Finding(
        "stolen time",
        "bad" if worst > STOLEN_BAD else "warn",
        f"the hypervisor gave {share(worst)} of the cores' time to others",
        "use a host of your own, dedicated cores, or another hour",
    )


def quota(host: Host) -> Finding:
    """Whether a control group grants less time than the cores have: all threads then stop together and wait."""
    granted, allowed = quota_cores(host), allowed_cores(host)
    if groups(host, "cpu") is None:
        return Finding("CPU quota", "unknown", "no control group for the CPU is visible here")
    if granted is None:
        return Finding("CPU quota", "good", "none")
    if allowed is None:
        return Finding("CPU quota", "unknown", f"{granted:g} cores' time, of an unknown number of cores")
    if granted >= len(allowed):
        return Finding("CPU quota", "good", f"{granted:g} cores' time for {len(allowed)} cores")
    return Finding(
        "CPU quota",
        "warn",
        f"{granted:g} cores' time for {len(allowed)} cores: when it is used up, all threads stop until the next period",
        f"give whole cores (docker --cpuset-cpus, kubelet's static policy), or start {max(1, math.floor(granted))} threads in all",
    )


def throttling(before: Snapshot, after: Snapshot) -> Finding:
    """Whether the quota ran out. before, after: around a time in which the machine worked."""
    if before.throttled is None or after.throttled is None:
        return Finding("CPU throttling", "unknown", "no control group here counts it (nr_throttled)")
    advice = "raise the quota or give whole cores; then look again"
    now = after.throttled - before.throttled
    if now > 0:
        return Finding("CPU throttling", "bad", f"the quota ran out in {now} periods of this check", advice)
    if after.throttled:
        found = f"the quota ran out in {after.throttled} periods before this check, none during it"
        return Finding("CPU throttling", "warn", found, advice)
    return Finding("CPU throttling", "good", "none")


def _differences(host: Host, before: Snapshot, after: Snapshot) -> list[CoreTimes]:
    """What each usable core did between two snapshots."""
    allowed: Collection[int] = allowed_cores(host) or after.cores
    both = [core for core in after.cores if core in before.cores and core in allowed]
    return [_difference(before.cores[core], after.cores[core]) for core in both]


def _difference(before: CoreTimes, after: CoreTimes) -> CoreTimes:
    # The kernel's idle counters may step back by a tick.
    stolen = None if before.stolen is None or after.stolen is None else max(0, after.stolen - before.stolen)
    return CoreTimes(max(0, after.busy - before.busy), max(0, after.idle - before.idle), stolen)


def _ticks_of(pid: int | None, before: Snapshot, after: Snapshot) -> int:
    if pid is None or pid not in after.processes:
        return 0
    then, now = before.processes.get(pid), after.processes[pid]
    return now.ticks - then.ticks if then is not None and then.started == now.started else now.ticks


def _busiest(before: Snapshot, after: Snapshot, core: float) -> str:
    """The processes that took most. core: ticks of one core in that time."""
    taken = {pid: _ticks_of(pid, before, after) / core for pid in after.processes if pid != after.me}
    most = sorted(taken, key=lambda pid: -taken[pid])[:_NAMED]
    return ", ".join(
        f"{after.processes[pid].name} (pid {pid}) {share(taken[pid])} of a core"
        for pid in most
        if taken[pid] > _NOTICED
    )
