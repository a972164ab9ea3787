"""Checks of the processor: its frequency, its clock, its heat, and which cores are ours."""

from assay.doctor.cgroup import cpuset
from assay.doctor.finding import Finding
from assay.doctor.host import Host, allowed_cores, core_list, online_cores, status_field, why_hidden
from assay.doctor.snapshot import Snapshot

_CPUS = "sys/devices/system/cpu"
# Counters that a process reads without asking the kernel.
_FAST_CLOCKS = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "timebase", "tod", "riscv_clocksource"}  # fmt: skip
_SLOW_CLOCKS = {"hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit", "xen"}


def governor(host: Host) -> Finding:
    """Who decides the frequency. Only `performance` keeps it where it can be."""
    names = {host.text(path) or "" for path in host.below(f"{_CPUS}/cpu[0-9]*/cpufreq/scaling_governor")} - {""}
    if not names:
        return Finding("frequency governor", "unknown", f"no cpufreq in /sys: {why_hidden(host)}")
    found = ", ".join(sorted(names))
    if names == {"performance"}:
        return Finding("frequency governor", "good", found)
    return Finding(
        "frequency governor",
        "warn",
        f"{found}: the frequency follows the load, so short work runs slower than long work",
        "cpupower frequency-set -g performance",
    )


def boost(host: Host) -> Finding:
    """Whether cores may run above their nominal frequency. Told only: most machines are used, and measured, with it."""
    no_turbo = host.number(f"{_CPUS}/intel_pstate/no_turbo")
    on = no_turbo == 0 if no_turbo is not None else host.number(f"{_CPUS}/cpufreq/boost")
    if on is None:
        return Finding("boost", "unknown", f"neither intel_pstate nor cpufreq/boost in /sys: {why_hidden(host)}")
    return Finding("boost", "good", "on: the frequency depends on heat and on how many cores work" if on else "off")


def clock_source(host: Host) -> Finding:
    """What the kernel's clock reads. A slow one adds a microsecond or more to every reading of the time."""
    name = host.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not name:
        return Finding("clock source", "unknown", "no clocksource in /sys: this kernel does not offer it")
    if name in _FAST_CLOCKS:
        return Finding("clock source", "good", name)
    if name in _SLOW_CLOCKS:
        return Finding(
            "clock source",
            "warn",
            f"{name}: a reading costs a call into the kernel, a microsecond or more; small messages look slower",
            "look in dmesg why tsc was given up; boot with clocksource=tsc if it is stable",
        )
    return Finding("clock source", "unknown", f"{name} is not known to this check")


def heat(before: Snapshot, after: Snapshot) -> Finding:
    """Whether heat slows cores down. before, after: around a time in which the machine worked."""
    if before.heated is None or after.heated is None:
        return Finding(
            "heat", "unknown", "no thermal_throttle counters in /sys: only the driver of Intel's processors has them"
        )
    if after.heated > before.heated:
        advice = "let it cool, mend the cooling or lower the power limit, then look again"
        return Finding("heat", "bad", "heat slowed cores during this check", advice)
    if after.heated:
        advice = "check the cooling if this counts on (thermal_throttle in /sys)"
        return Finding("heat", "warn", "heat has slowed cores since boot, not during this check", advice)
    return Finding("heat", "good", "never slowed a core since boot")


def cores(host: Host) -> Finding:
    """How many cores this process may use, of those there are."""
    allowed, online = allowed_cores(host), online_cores(host)
    if not allowed or not online:
        return Finding("cores", "unknown", "the kernel does not tell which cores are there and which are allowed")
    siblings = {host.text(f"{_CPUS}/cpu{core}/topology/thread_siblings_list") for core in allowed}
    physical = "" if None in siblings or len(siblings) == len(allowed) else f", on {len(siblings)} physical ones"
    found = f"{len(allowed)} of {len(online)} usable{physical}"
    if len(allowed) == 1 and len(online) > 1:
        return Finding("cores", "warn", found, "give it more cores (taskset, cpuset): ranks take turns on one")
    if len(allowed) == 1:
        return Finding("cores", "warn", found, "use a host with a core for each rank: they take turns on one")
    return Finding("cores", "good", found)


def affinity(host: Host) -> Finding:
    """Whether somebody bound this process to fewer cores than its cpuset allows: every rank would inherit that."""
    allowed, online = allowed_cores(host), online_cores(host)
    if not allowed or not online:
        return Finding("affinity", "unknown", "the kernel does not tell which cores are allowed")
    offered = (cpuset(host) or online) & online
    if offered <= allowed:
        return Finding("affinity", "good", "not bound")
    return Finding(
        "affinity",
        "warn",
        f"bound to {len(allowed)} of the {len(offered)} cores that are allowed here; every rank inherits this",
        "start without taskset, numactl or a launcher's binding, unless it is meant",
    )


def numa(host: Host) -> Finding:
    """Memory nodes: whether the kernel moves pages between them while something is measured."""
    nodes = {path: core_list(host.text(f"{path}/cpulist")) for path in host.below("sys/devices/system/node/node[0-9]*")}
    if not nodes:
        return Finding("NUMA", "unknown", "no nodes in /sys: this kernel does not offer it")
    if len(nodes) == 1:
        return Finding("NUMA", "good", "one node")
    allowed = allowed_cores(host)
    memory = core_list(status_field(host, "Mems_allowed_list"))
    on = [cores for cores in nodes.values() if cores and allowed and cores & allowed]
    if len(on) == 1 and memory is not None and len(memory) == 1:
        return Finding("NUMA", "good", f"bound to one of {len(nodes)} nodes")
    balancing = host.number("proc/sys/kernel/numa_balancing")
    if balancing is None:
        return Finding("NUMA", "unknown", f"{len(nodes)} nodes; no numa_balancing in /proc: {why_hidden(host)}")
    if balancing:
        found = f"{len(nodes)} nodes, balancing on: the kernel moves pages while they are used"
        return Finding("NUMA", "warn", found, "echo 0 > /proc/sys/kernel/numa_balancing, or bind with numactl")
    return Finding("NUMA", "good", f"{len(nodes)} nodes, balancing off, not bound to one")
