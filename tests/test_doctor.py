"""Each check of the host in each of its states, on planted /proc and /sys trees."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from assay.doctor import cgroup, cores, load, memory, settings
from assay.doctor.finding import Finding
from assay.doctor.host import Host, Space, core_list

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
FOUR = {f"{CPU}/online": "0-3", "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-3\nMems_allowed_list:\t0-1"}
LIMITS = "Limit                     Soft Limit           Hard Limit           Units"
Planted = Mapping[str, str]


def plant(root: Path, files: Planted, env: Mapping[str, str] | None = None, space: Space | None = None) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    given = space or Space(1 << 40, 1 << 40)
    return Host(root, env or {}, lambda path: given)


def expect(finding: Finding, state: str, word: str) -> None:
    assert (finding.state, word in finding.found) == (state, True), finding
    assert bool(finding.advice) == (state in ("warn", "bad")), finding


@pytest.mark.parametrize(
    ("check", "files", "state", "word"),
    [
        (cores.governor, {f"{CPU}/cpu{i}/cpufreq/scaling_governor": "performance" for i in (0, 1)}, "good", "performance"),
        (cores.governor, {f"{CPU}/cpu{i}/cpufreq/scaling_governor": name for i, name in enumerate(("performance", "powersave"))}, "warn", "powersave"),
        (cores.governor, {"proc/cpuinfo": "flags\t: fpu hypervisor lm"}, "unknown", "hypervisor hides it"),
        (cores.governor, {"proc/cpuinfo": "flags\t: fpu lm"}, "unknown", "kernel does not offer it"),
        (cores.boost, {f"{CPU}/intel_pstate/no_turbo": "0"}, "good", "on:"),
        (cores.boost, {f"{CPU}/intel_pstate/no_turbo": "1"}, "good", "off"),
        (cores.boost, {f"{CPU}/cpufreq/boost": "0"}, "good", "off"),
        (cores.boost, {}, "unknown", "kernel does not offer it"),
        (cores.clock_source, {CLOCK: "tsc"}, "good", "tsc"),
        (cores.clock_source, {CLOCK: "hpet"}, "warn", "microsecond"),
        (cores.clock_source, {CLOCK: "acpi_pm"}, "warn", "acpi_pm"),
        (cores.clock_source, {CLOCK: "sundial"}, "unknown", "sundial"),
        (cores.clock_source, {}, "unknown", "no clocksource"),
        (cores.cores, FOUR, "good", "4 of 4"),
        (cores.cores, FOUR | {f"{CPU}/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)}, "good", "2 physical"),
        (cores.cores, FOUR | {"proc/self/status": "Cpus_allowed_list:\t2"}, "warn", "1 of 4"),
        (cores.cores, {f"{CPU}/online": "0", "proc/self/status": "Cpus_allowed_list:\t0"}, "warn", "1 of 1"),
        (cores.cores, {}, "unknown", "does not tell"),
        (cores.affinity, FOUR, "good", "not bound"),
        (cores.affinity, FOUR | {"proc/self/status": "Cpus_allowed_list:\t0-1"}, "warn", "2 of the 4"),
        (cores.affinity, {}, "unknown", "does not tell"),
        (cores.numa, {f"{NODE}/node0/cpulist": "0-3"}, "good", "one node"),
        (cores.numa, {}, "unknown", "no nodes"),
        (memory.huge_pages, {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never"}, "good", "madvise"),
        (memory.huge_pages, {}, "unknown", "no transparent_hugepage"),
        (memory.memory, {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB"}, "good", "8.19 GB"),
        (memory.memory, {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 2000000 kB"}, "warn", "2.05 GB"),
        (memory.memory, {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 500000 kB"}, "bad", "512 MB"),
        (memory.memory, {}, "unknown", "MemAvailable"),
        (settings.open_files, {"proc/self/limits": f"{LIMITS}\nMax open files            65536      65536      files"}, "good", "65,536"),
        (settings.open_files, {"proc/self/limits": f"{LIMITS}\nMax open files            512        65536      files"}, "warn", "512"),
        (settings.open_files, {"proc/self/limits": f"{LIMITS}\nMax open files            64         65536      files"}, "bad", "64"),
        (settings.open_files, {}, "unknown", "no such limit"),
        (settings.processes, {"proc/self/limits": f"{LIMITS}\nMax processes      unlimited      unlimited      processes"}, "good", "unlimited"),
        (settings.processes, {"proc/self/limits": f"{LIMITS}\nMax processes      1000      unlimited      processes"}, "warn", "1,000"),
        (settings.processes, {}, "unknown", "no such limit"),
        (settings.locked_memory, {"proc/self/limits": f"{LIMITS}\nMax locked memory    65536    65536   bytes"}, "good", "no RDMA card"),
        (settings.locked_memory, {"proc/self/limits": f"{LIMITS}\nMax locked memory    65536    65536   bytes", "sys/class/infiniband/mlx5_0/node_type": "1"}, "warn", "mlx5_0"),
        (settings.locked_memory, {"proc/self/limits": f"{LIMITS}\nMax locked memory    unlimited    unlimited   bytes", "sys/class/infiniband/mlx5_0/node_type": "1"}, "good", "unlimited"),
        (settings.locked_memory, {}, "unknown", "no such limit"),
        (settings.core_files, {"proc/self/limits": f"{LIMITS}\nMax core file size    0    unlimited   bytes"}, "good", "off"),
        (settings.core_files, {"proc/self/limits": f"{LIMITS}\nMax core file size    unlimited    unlimited   bytes"}, "good", "any size"),
        (settings.core_files, {}, "unknown", "no such limit"),
        (settings.surroundings, {"proc/cpuinfo": "flags\t: fpu hypervisor", ".dockerenv": ""}, "good", "virtual machine, in a container (docker)"),
        (settings.surroundings, {"proc/self/cgroup": "0::/kubepods/pod1"}, "good", "no hypervisor seen, in a container (kubepods)"),
        (settings.surroundings, {"sys/class/dmi/id/sys_vendor": "Dell Inc.", "proc/self/cgroup": "0::/user.slice"}, "good", "Dell Inc., no container seen"),
    ],
)  # fmt: skip
def test_a_check_reads_the_tree(
    tmp_path: Path, check: Callable[[Host], Finding], files: Planted, state: str, word: str
) -> None:
    expect(check(plant(tmp_path, files)), state, word)


@pytest.mark.parametrize(
    ("balancing", "allowed", "memory_nodes", "state", "word"),
    [
        ("1", "0-3", "0-1", "warn", "balancing on"),
        ("0", "0-3", "0-1", "good", "balancing off"),
        ("1", "0-1", "0", "good", "bound to one of 2"),
        ("1", "0-1", "0-1", "warn", "balancing on"),  # memory may still come from the other node
        (None, "0-3", "0-1", "unknown", "2 nodes"),
    ],
)
def test_numa_with_two_nodes(
    tmp_path: Path, balancing: str | None, allowed: str, memory_nodes: str, state: str, word: str
) -> None:
    status = f"Cpus_allowed_list:\t{allowed}\nMems_allowed_list:\t{memory_nodes}"
    files = {f"{NODE}/node0/cpulist": "0-1", f"{NODE}/node1/cpulist": "2-3", "proc/self/status": status}
    if balancing is not None:
        files["proc/sys/kernel/numa_balancing"] = balancing
    expect(cores.numa(plant(tmp_path, files)), state, word)


V2 = {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/cgroup.controllers": "cpu memory", **FOUR}
V1 = {"proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n2:pids:/docker/x\n1:name=systemd:/", **FOUR}
V1_CPU, V1_MEMORY, V1_PIDS = (f"sys/fs/cgroup/{name}" for name in ("cpu,cpuacct", "memory", "pids"))


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "50000 100000", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 0.5),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        (V2 | {"proc/self/cgroup": "0::/../..", "sys/fs/cgroup/cpu.max": "300000 100000", "sys/cpu.max": "1 1"}, 3.0),
        (V2 | {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),  # in a container the path does not exist
        (V1 | {f"{V1_CPU}/cgroup.procs": "1", f"{V1_CPU}/cpu.cfs_quota_us": "-1", f"{V1_CPU}/cpu.cfs_period_us": "100000"}, None),
        (V1 | {f"{V1_CPU}/cgroup.procs": "1", f"{V1_CPU}/cpu.cfs_quota_us": "250000", f"{V1_CPU}/cpu.cfs_period_us": "100000"}, 2.5),
        ({}, None),
    ],
)  # fmt: skip
def test_the_tightest_quota_counts(tmp_path: Path, files: Planted, granted: float | None) -> None:
    assert cgroup.quota_cores(plant(tmp_path, files)) == granted


@pytest.mark.parametrize(
    ("quota", "state", "word"),
    [("max 100000", "good", "none"), ("400000 100000", "good", "4 cores"), ("150000 100000", "warn", "1.5 cores")],
)
def test_a_quota_below_the_cores_is_a_doubt(tmp_path: Path, quota: str, state: str, word: str) -> None:
    expect(load.quota(plant(tmp_path, V2 | {"sys/fs/cgroup/a/b/cpu.max": quota})), state, word)


def test_a_quota_of_an_unknown_number_of_cores_is_unknown(tmp_path: Path) -> None:
    files = {**V2, "proc/self/status": "", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}
    expect(load.quota(plant(tmp_path, files)), "unknown", "1.5 cores")


@pytest.mark.parametrize(
    ("files", "state", "word"),
    [
        (V2 | {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/b/memory.current": "5"}, "good", "none"),
        (V2 | {"sys/fs/cgroup/a/b/memory.max": str(8 << 30), "sys/fs/cgroup/a/b/memory.current": str(1 << 30)}, "good", "7.52 GB of 8.59 GB"),
        (V2 | {"sys/fs/cgroup/a/memory.max": str(8 << 30), "sys/fs/cgroup/a/memory.current": str(6 << 30)}, "warn", "2.15 GB"),
        (V2 | {"sys/fs/cgroup/a/memory.max": str(8 << 30), "sys/fs/cgroup/a/memory.current": str(8 << 30), "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {2 << 30}"}, "warn", "2.15 GB"),
        (V1 | {f"{V1_MEMORY}/cgroup.procs": "1", f"{V1_MEMORY}/memory.limit_in_bytes": "9223372036854771712", f"{V1_MEMORY}/memory.usage_in_bytes": "5"}, "good", "none"),
        (V1 | {f"{V1_MEMORY}/cgroup.procs": "1", f"{V1_MEMORY}/memory.limit_in_bytes": str(1 << 30), f"{V1_MEMORY}/memory.usage_in_bytes": str(1 << 29)}, "bad", "537 MB"),
    ],
)  # fmt: skip
def test_memory_limits(tmp_path: Path, files: Planted, state: str, word: str) -> None:
    expect(memory.memory_limit(plant(tmp_path, files)), state, word)


def test_a_control_group_limits_processes_too(tmp_path: Path) -> None:
    pids = {f"{V1_PIDS}/cgroup.procs": "1", f"{V1_PIDS}/pids.max": "500", f"{V1_PIDS}/pids.current": "100"}
    limits = {"proc/self/limits": f"{LIMITS}\nMax processes      90000      90000      processes"}
    finding = settings.processes(plant(tmp_path, {**V1, **pids, **limits}))
    expect(finding, "bad", "400")
    assert "--pids-limit" in finding.advice


def test_a_cpuset_is_no_binding(tmp_path: Path) -> None:
    files = {**V2, "sys/fs/cgroup/a/b/cpuset.cpus.effective": "0-1", "proc/self/status": "Cpus_allowed_list:\t0-1"}
    expect(cores.affinity(plant(tmp_path, files)), "good", "not bound")
    expect(cores.cores(plant(tmp_path, files)), "good", "2 of 4")


@pytest.mark.parametrize(
    ("total", "free", "state", "advice"),
    [(8 << 30, 8 << 30, "good", ""), (64 << 20, 64 << 20, "bad", "shm-size"), (512 << 20, 512 << 20, "warn", "shm-size"), (8 << 30, 1 << 20, "bad", "remove")],
)  # fmt: skip
def test_shared_memory(tmp_path: Path, total: int, free: int, state: str, advice: str) -> None:
    finding = memory.shared_memory(plant(tmp_path, {}, space=Space(total, free)))
    expect(finding, state, "/dev/shm")  # noqa: S108 - the words of the finding
    assert advice in finding.advice


def test_no_shared_memory_is_unknown(tmp_path: Path) -> None:
    expect(memory.shared_memory(Host(tmp_path)), "unknown", "no /dev/shm")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-2,8", {0, 1, 2, 8}), ("3", {3}), ("", None), (None, None), ("4-2", None), ("a-b", None), ("0,,1", None)],
)
def test_core_lists(text: str | None, expected: set[int] | None) -> None:
    assert core_list(text) == expected
