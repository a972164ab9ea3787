"""What goes on between two snapshots: other load, stolen time, throttling, heat, swapping."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from assay.doctor import cores, load, memory, settings
from assay.doctor.finding import Finding
from assay.doctor.host import Host
from assay.doctor.snapshot import Snapshot, take
from tests.test_doctor import CPU, V2, Planted, expect, plant


def moment(root: Path, ticks: Mapping[str, str], processes: Planted | None = None, vmstat: str = "") -> Snapshot:
    stat = "\n".join(f"{core} {words}" for core, words in ticks.items())
    files = {"proc/stat": f"cpu 9 9 9 9 9 9 9 9\n{stat}", "proc/vmstat": vmstat, **(processes or {})}
    return take(plant(root, files))


def process(pid: int, name: str, ticks: int, started: int = 5) -> Planted:
    line = f"{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 {started} 0"
    return {f"proc/{pid}/stat": line}


IDLE = {"cpu0": "0 0 0 50 0 0 0 0 0 0", "cpu1": "0 0 0 50 0 0 0 0 0 0"}
NOTHING = {"cpu0": "0 0 0 0 0 0 0 0 0 0", "cpu1": "0 0 0 0 0 0 0 0 0 0"}


@pytest.mark.parametrize(
    ("after", "state", "word"),
    [
        (IDLE, "good", "0.0 % of 2 cores"),
        ({"cpu0": "4 0 0 46 0 0 0 0 0 0", "cpu1": "0 0 0 50 0 0 0 0 0 0"}, "good", "4.0 % of 2"),
        ({"cpu0": "0 0 10 40 0 0 0 0 0 0", "cpu1": "0 0 0 50 0 0 0 0 0 0"}, "warn", "10 % of 2"),
        ({"cpu0": "50 0 0 0 0 0 0 0 0 0", "cpu1": "0 0 0 50 0 0 0 0 0 0"}, "bad", "50 % of 2"),
        ({"cpu0": "0 30 0 0 20 0 0 0 0 0", "cpu1": "0 0 0 50 0 0 0 0 0 0"}, "warn", "30 % of 2"),
    ],
)
def test_other_load(tmp_path: Path, after: Mapping[str, str], state: str, word: str) -> None:
    expect(load.other_load(Host(tmp_path), moment(tmp_path, NOTHING), moment(tmp_path, after)), state, word)


def test_one_busy_core_of_many_is_a_doubt(tmp_path: Path) -> None:
    before = {f"cpu{i}": "0 0 0 0 0 0 0 0 0 0" for i in range(64)}
    after = dict.fromkeys(before, "0 0 0 50 0 0 0 0 0 0") | {"cpu7": "50 0 0 0 0 0 0 0 0 0"}
    finding = load.other_load(Host(tmp_path), moment(tmp_path, before), moment(tmp_path, after))
    expect(finding, "warn", "100 % of one of them")


def test_cores_of_others_do_not_count(tmp_path: Path) -> None:
    busy = {"cpu0": "0 0 0 50 0 0 0 0 0 0", "cpu1": "50 0 0 0 0 0 0 0 0 0"}
    before = moment(tmp_path, NOTHING)
    host = plant(tmp_path, {"proc/self/status": "Cpus_allowed_list:\t0"})
    expect(load.other_load(host, before, moment(tmp_path, busy)), "good", "0.0 % of 1 core")


def test_load_names_the_busiest_and_leaves_ourselves_out(tmp_path: Path) -> None:
    me = {"proc/self/stat": "11 (assay) S 1 1"}
    then = {
        **me,
        **process(11, "assay", 100),
        **process(12, "gromacs :) x", 7),
        **process(13, "reused", 900, started=1),
    }
    now = {**me, **process(11, "assay", 120), **process(12, "gromacs :) x", 37), **process(13, "reused", 20, started=9)}
    after = {"cpu0": "50 0 0 0 0 0 0 0 0 0", "cpu1": "20 0 0 30 0 0 0 0 0 0"}
    finding = load.other_load(Host(tmp_path), moment(tmp_path, NOTHING, then), moment(tmp_path, after, now))
    expect(finding, "bad", "50 % of 2 cores: gromacs :) x (pid 12) 60 % of a core, reused (pid 13) 40 % of a core")
    assert "assay" not in finding.found


def test_load_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    still = moment(tmp_path, IDLE)
    expect(load.other_load(Host(tmp_path), still, still), "unknown", "do not move")
    expect(load.stolen_time(Host(tmp_path), (still, still)), "unknown", "steal")


@pytest.mark.parametrize(
    ("ticks", "state", "word"),
    [("0 0 0 100 0 0 0 0", "good", "none"), ("95 0 0 0 0 0 0 5", "warn", "5.0 %"), ("80 0 0 0 0 0 0 20", "bad", "20 %"), ("95 0 0 5 0 0 0", "unknown", "steal")],
)  # fmt: skip
def test_stolen_time_is_that_of_the_worst_span(tmp_path: Path, ticks: str, state: str, word: str) -> None:
    blank = " ".join("0" for _ in ticks.split())
    start, end = moment(tmp_path, {"cpu0": blank}), moment(tmp_path, {"cpu0": ticks})
    assert len(start.cores) == 1
    quiet = (start, moment(tmp_path, {"cpu0": " ".join("9" if i == 3 else "0" for i in range(len(ticks.split())))}))
    expect(load.stolen_time(Host(tmp_path), quiet, (start, end)), state, word)


@pytest.mark.parametrize(
    ("before", "after", "state", "word"),
    [("0", "0", "good", "never"), ("3", "3", "warn", "since boot"), ("3", "4", "bad", "during this check")],
)
def test_heat(tmp_path: Path, before: str, after: str, state: str, word: str) -> None:
    name = f"{CPU}/cpu1/thermal_throttle/package_throttle_count"
    moments = [take(plant(tmp_path, {name: count})) for count in (before, after)]
    expect(cores.heat(*moments), state, word)


def test_heat_that_nobody_counts_is_unknown(tmp_path: Path) -> None:
    expect(cores.heat(take(Host(tmp_path)), take(Host(tmp_path))), "unknown", "Intel")


@pytest.mark.parametrize(
    ("used", "moved", "state", "word"),
    [(0, 0, "good", "none in use"), (4096, 0, "good", "4.19 MB in use"), (1 << 20, 0, "warn", "1.07 GB"), (0, 12, "bad", "12 pages")],
)  # fmt: skip
def test_swap(tmp_path: Path, used: int, moved: int, state: str, word: str) -> None:
    host = plant(tmp_path, {"proc/meminfo": f"SwapTotal: 4000000 kB\nSwapFree: {4000000 - used} kB"})
    start = moment(tmp_path, NOTHING, vmstat="pswpin 5\npswpout 6")
    end = moment(tmp_path, NOTHING, vmstat=f"pswpin {5 + moved}\npswpout 6")
    expect(memory.swap(host, start, end), state, word)


def test_swap_without_counters(tmp_path: Path) -> None:
    start = moment(tmp_path, NOTHING, vmstat="pswpin 5\npswpout 6")
    no_swap = plant(tmp_path, {"proc/meminfo": "SwapTotal: 0 kB\nSwapFree: 0 kB"})
    expect(memory.swap(no_swap, start, start), "good", "none")
    expect(memory.swap(no_swap, start, replace(start, swapped=None)), "unknown", "no swap counters")


@pytest.mark.parametrize(
    ("before", "after", "state", "word"),
    [(0, 0, "good", "none"), (7, 7, "warn", "7 periods before"), (7, 9, "bad", "2 periods"), (None, None, "unknown", "nr_throttled")],
)  # fmt: skip
def test_throttling(tmp_path: Path, before: int | None, after: int | None, state: str, word: str) -> None:
    moments = []
    for count in (before, after):
        stat = {} if count is None else {"sys/fs/cgroup/a/b/cpu.stat": f"nr_periods 50\nnr_throttled {count}"}
        moments.append(take(plant(tmp_path, V2 | stat)))
    expect(load.throttling(*moments), state, word)


def test_no_check_of_an_empty_tree_guesses(tmp_path: Path) -> None:
    """A system that shows nothing (no Linux, or all hidden) gives reasons, no verdicts."""
    host, nothing = Host(tmp_path, {}), take(Host(tmp_path))
    checks: list[Callable[[Host], Finding]] = [
        cores.governor, cores.boost, cores.clock_source, cores.cores, cores.affinity, cores.numa, memory.memory,
        memory.shared_memory, memory.huge_pages, settings.open_files, settings.processes, settings.locked_memory,
        settings.core_files, settings.threads, load.quota, memory.memory_limit,
    ]  # fmt: skip
    found = [check(host) for check in checks]
    found += [load.other_load(host, nothing, nothing), load.stolen_time(host, (nothing, nothing))]
    found += [load.throttling(nothing, nothing), cores.heat(nothing, nothing), memory.swap(host, nothing, nothing)]
    assert {finding.state for finding in found} == {"unknown"}
    assert all(finding.found for finding in found)
