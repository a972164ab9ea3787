"""The sources of the kernel's files, on planted trees, and a vendor's tool, as real processes."""

import contextlib
import os
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assay.sensors.hwmon import open_hwmon
from assay.sensors.inventory import open_sources
from assay.sensors.links import open_links
from assay.sensors.powercap import open_powercap
from assay.sensors.processor import open_processor, open_time, spread
from assay.sensors.quota import open_quota
from assay.sensors.source import Source
from assay.sensors.tool import MOST_MALFORMED, Tool, open_tool
from tests.conftest import wait_for


def plant(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def values(source: Source) -> dict[tuple[str, ...], float | None]:
    """(metric, device, further tags that tell gauges apart) → value."""
    apart = ("part", "sensor", "domain", "counter", "cgroup", "cpu")
    return {
        (gauge.metric, str(gauge.tags["device"]), *(str(gauge.tags[key]) for key in apart if key in gauge.tags)): value
        for gauge, value in source.read()
    }


def opened(found: "Source | str") -> Source:
    assert not isinstance(found, str), found
    return found


RAPL = "sys/class/powercap/intel-rapl"


def test_energy_goes_on_rising_when_its_counter_wraps(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {f"{RAPL}:0/name": "package-0", f"{RAPL}:0/max_energy_range_uj": 1_000_000, f"{RAPL}:0/energy_uj": 900_000},
    )
    source = opened(open_powercap(tmp_path))
    told = []
    for raw in (900_000, 950_000, 100_000, 50_000, 60_000):
        plant(tmp_path, {f"{RAPL}:0/energy_uj": raw})
        told += [value for _, value in source.read()]
    assert told == [0.9, 0.95, 1.1, 2.05, 2.06]
    source.close()


def test_packages_their_parts_and_the_platform_are_told_apart(tmp_path: Path) -> None:
    for zone, name in {":0": "package-0", ":0:0": "core", ":0:1": "dram", ":1": "package-1", ":2": "psys"}.items():
        plant(tmp_path, {f"{RAPL}{zone}/name": name, f"{RAPL}{zone}/energy_uj": 1_000_000})
    # The same package by another way must not be counted again.
    mapped = "sys/class/powercap/intel-rapl-mmio:0"
    plant(tmp_path, {f"{mapped}/name": "package-0", f"{mapped}/energy_uj": 5})
    source = opened(open_powercap(tmp_path))
    assert sorted(values(source)) == [
        ("energy", "package-0", "package"),
        ("energy", "package-0/core", "subzone"),
        ("energy", "package-0/dram", "subzone"),
        ("energy", "package-1", "package"),
        ("energy", "psys", "platform"),
    ]
    source.close()


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Without root's rights for a while, should the tests have them."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_counters_that_are_roots_alone_are_a_reason() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        plant(root, {f"{RAPL}:0/name": "package-0", f"{RAPL}:0/energy_uj": 1})
        root.chmod(0o755)
        (root / f"{RAPL}:0/energy_uj").chmod(stat.S_IRUSR if os.geteuid() == 0 else 0)
        with ordinary_user():
            found = open_powercap(root)
    assert isinstance(found, str)
    assert "energy_uj: permission denied" in found


def test_a_cards_own_files_are_in_base_units(tmp_path: Path) -> None:
    for card, address in (("card1", "0000:03:00.0"), ("card0", "0000:43:00.0")):
        monitor = f"sys/devices/{address}/hwmon/hwmon4"
        plant(tmp_path, {f"{monitor}/name": "amdgpu", f"{monitor}/power1_average": 301_500_000})
        plant(tmp_path, {f"{monitor}/temp1_input": 61_000, f"{monitor}/temp1_label": "edge"})
        plant(tmp_path, {f"{monitor}/temp2_input": 71_500, f"{monitor}/temp2_label": "junction"})
        plant(tmp_path, {f"{monitor}/freq1_input": 2_100_000_000, f"{monitor}/freq1_label": "sclk"})
        (tmp_path / f"sys/class/drm/{card}").mkdir(parents=True)
        (tmp_path / f"sys/class/drm/{card}/device").symlink_to(tmp_path / "sys/devices" / address)
    (tmp_path / "sys/class/drm/card0-DP-1").mkdir()
    source = opened(open_hwmon(tmp_path, {}))
    told = values(source)
    assert told["power", "card0", "accelerator"] == 301.5
    assert told["temperature", "card0", "accelerator", "junction"] == 71.5
    assert told["clock", "card0", "accelerator", "sclk"] == 2.1e9
    indices = {gauge.tags["device"]: gauge.tags["index"] for gauge, _ in source.read()}
    assert indices == {"card1": 0, "card0": 1}, "cards are counted in the order of their addresses"
    chosen = opened(open_hwmon(tmp_path, {"HIP_VISIBLE_DEVICES": "1"}))
    assert all("index" not in gauge.tags for gauge, _ in chosen.read())
    # A card that falls asleep does not answer: that is a null, not an error.
    (tmp_path / "sys/devices/0000:43:00.0/hwmon/hwmon4/power1_average").write_text("")
    assert values(source)["power", "card0", "accelerator"] is None
    source.close()
    chosen.close()


def test_a_card_with_an_energy_counter(tmp_path: Path) -> None:
    monitor = "sys/class/drm/card0/device/hwmon/hwmon0"
    plant(tmp_path, {f"{monitor}/name": "xe", f"{monitor}/energy1_input": 2_500_000, f"{monitor}/power1_max": 9})
    source = opened(open_hwmon(tmp_path, {}))
    assert values(source) == {("energy", "card0", "accelerator"): 2.5}
    source.close()


def test_clocks_of_eight_processors_stand_for_many(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    for number in range(256):
        plant(tmp_path, {f"{cpu}/cpufreq/policy{number}/scaling_cur_freq": 2_000_000 + number})
        plant(tmp_path, {f"{cpu}/cpu{number}/topology/physical_package_id": number // 128})
        plant(tmp_path, {f"{cpu}/cpu{number}/thermal_throttle/package_throttle_count": 7})
        plant(tmp_path, {f"{cpu}/cpu{number}/thermal_throttle/package_throttle_total_time_ms": 1500})
    plant(
        tmp_path,
        {"sys/class/thermal/thermal_zone0/type": "x86_pkg_temp", "sys/class/thermal/thermal_zone0/temp": 55_000},
    )
    plant(
        tmp_path, {"sys/class/thermal/thermal_zone1/type": "iwlwifi_1", "sys/class/thermal/thermal_zone1/temp": 40_000}
    )
    source = opened(open_processor(tmp_path))
    told = values(source)
    clocks = {key[-1]: value for key, value in told.items() if key[0] == "clock"}
    assert clocks == {str(number): (2_000_000 + number) * 1e3 for number in range(0, 256, 32)}
    assert {gauge.tags["of"] for gauge, _ in source.read() if gauge.metric == "clock"} == {256}
    others = {key: value for key, value in told.items() if key[0] != "clock"}
    assert others == {
        ("temperature", "x86_pkg_temp:0"): 55.0,
        ("throttle_events", "package-0"): 7, ("throttle_events", "package-1"): 7,
        ("throttle_time", "package-0"): 1.5, ("throttle_time", "package-1"): 1.5,
    }  # fmt: skip
    source.close()


def test_processors_are_spread_evenly() -> None:
    assert spread(3, 8) == [0, 1, 2]
    assert spread(0, 8) == []
    assert spread(17, 8) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_busy_and_stolen_seconds(tmp_path: Path) -> None:
    hertz = os.sysconf("SC_CLK_TCK")
    counts = [count * hertz for count in (1, 2, 3, 100, 200, 4, 5, 6, 50, 60)]
    plant(tmp_path, {"proc/stat": "cpu  " + " ".join(map(str, counts)) + "\ncpu0 1\ncpu1 1\nintr 5"})
    source = opened(open_time(tmp_path))
    assert values(source) == {("cpu_busy", "cpu"): 15.0, ("cpu_steal", "cpu"): 6.0}
    assert {gauge.tags["cores"] for gauge, _ in source.read()} == {2}
    source.close()


def test_quota_of_cgroup_v2_and_of_the_limited_groups_above(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    plant(tmp_path, {"proc/self/cgroup": "0::/pod/idle/mine", f"{top}/cpu.stat": "usage_usec 5"})
    plant(tmp_path, {f"{top}/pod/cpu.stat": "usage_usec 9\nnr_throttled 3\nthrottled_usec 2500000"})
    plant(tmp_path, {f"{top}/pod/cpu.max": "200000 100000"})
    plant(tmp_path, {f"{top}/pod/idle/cpu.stat": "throttled_usec 77", f"{top}/pod/idle/cpu.max": "max 100000"})
    plant(tmp_path, {f"{top}/pod/idle/mine/cpu.stat": "throttled_usec 0", f"{top}/pod/idle/mine/cpu.max": "max 100000"})
    source = opened(open_quota(tmp_path))
    assert values(source) == {("cpu_throttled", "cpu", "/pod"): 2.5, ("cpu_throttled", "cpu", "/pod/idle/mine"): 0.0}
    source.close()


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_quota_of_cgroup_v1_where_the_path_is_the_hosts(tmp_path: Path, mount: str) -> None:
    plant(tmp_path, {"proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/"})
    plant(tmp_path, {f"sys/fs/cgroup/{mount}/cpu.stat": "nr_periods 9\nnr_throttled 1\nthrottled_time 1500000000"})
    source = opened(open_quota(tmp_path))
    assert values(source) == {("cpu_throttled", "cpu", "/"): 1.5}
    source.close()


def test_error_counters_of_real_interfaces_and_ports(tmp_path: Path) -> None:
    for interface in ("lo", "eth0", "docker0"):
        for counter in ("rx_errors", "tx_errors", "rx_dropped", "tx_dropped", "rx_bytes"):
            plant(tmp_path, {f"sys/class/net/{interface}/statistics/{counter}": 3})
    plant(tmp_path, {"sys/class/net/eth0/device/vendor": "0x15b3", "sys/class/net/bonding_masters": ""})
    port = "sys/class/infiniband/mlx5_0/ports/1"
    plant(tmp_path, {f"{port}/counters/symbol_error": 2, f"{port}/counters/port_xmit_data": 9})
    plant(tmp_path, {f"{port}/hw_counters/out_of_sequence": 4, f"{port}/hw_counters/np_cnp_sent": 9})
    source = opened(open_links(tmp_path))
    told = values(source)
    assert {key[1] for key in told} == {"eth0", "mlx5_0/1"}
    assert {key[2]: value for key, value in told.items() if key[1] == "eth0"} == {
        "rx_errors": 3, "tx_errors": 3, "rx_dropped": 3, "tx_dropped": 3,
    }  # fmt: skip
    assert told["link_errors", "mlx5_0/1", "out_of_sequence"] == 4
    assert ("link_errors", "mlx5_0/1", "np_cnp_sent") not in told, "congestion is no error"
    source.close()


def test_in_a_container_the_one_end_of_a_pair_is_the_interface(tmp_path: Path) -> None:
    for number, (interface, link) in enumerate({"eth0": 99, "dummy0": 1, "lo": 2}.items()):
        plant(tmp_path, {f"sys/class/net/{interface}/ifindex": number, f"sys/class/net/{interface}/iflink": link})
        plant(tmp_path, {f"sys/class/net/{interface}/statistics/rx_errors": 0})
    source = opened(open_links(tmp_path))
    assert list(values(source)) == [("link_errors", "eth0", "rx_errors")]
    source.close()


def test_an_empty_machine_is_reasons_and_no_power_is_one_sentence(tmp_path: Path) -> None:
    inventory = open_sources(tmp_path, {})
    assert inventory.sources == []
    said = inventory.why_no_power()
    for looked_for in ("libnvidia-ml.so.1", "powercap", "drm", "ASSAY_SENSOR_COMMAND is not set"):
        assert looked_for in said


# ---- a vendor's tool ----


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Callable[[str], Tool]]:
    started = []

    def start(script: str) -> Tool:
        path = tmp_path / "tool with a space.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        found = open_tool({"ASSAY_SENSOR_COMMAND": f"{shlex.quote(str(path))} 'two words'"})
        assert isinstance(found, Tool), found
        started.append(found)
        return found

    yield start
    for one in started:
        one.close()


def read_until(source: Tool, metric: str) -> dict[tuple[str, ...], float | None]:
    told: dict[tuple[str, ...], float | None] = {}

    def is_told() -> bool:
        told.update(values(source))
        return any(key[0] == metric for key in told)

    wait_for(is_told, 10, metric)
    return told


def notes_of(source: Tool, count: int) -> list[str]:
    said: list[str] = []

    def all_said() -> bool:
        source.read()
        said.extend(source.notes())
        return len(said) >= count

    wait_for(all_said, 10, "notes")
    return said


def test_a_tools_lines_are_readings(tool: Callable[[str], Tool]) -> None:
    source = tool("""echo '{"device": "npu0", "power": 301.5, "clock": 1.8e9, "temperature": null}'
        echo "{\\"device\\": \\"$1\\", \\"energy\\": 7}"; sleep 60""")
    told = read_until(source, "energy")
    assert told["power", "npu0", "accelerator"] == 301.5
    assert told["clock", "npu0", "accelerator", "core"] == 1.8e9
    assert told["energy", "two words", "accelerator"] == 7, "arguments arrive as they were quoted"
    assert told["malformed_lines", "tool"] == 0
    assert ("power", "npu0", "accelerator") not in values(source), "what was not printed again is not read again"


def test_of_several_lines_the_newest_counts(tool: Callable[[str], Tool]) -> None:
    source = tool("""for p in 1 2 3; do echo "{\\"device\\": \\"a\\", \\"power\\": $p}"; done; echo '{"device": "b", "energy": 0}'
        sleep 60""")
    assert read_until(source, "energy")["power", "a", "accelerator"] == 3


def test_garbage_is_counted_and_said_once(tool: Callable[[str], Tool]) -> None:
    source = tool("""echo 'npu0 301 W'; echo '[1]'; echo '{"power": 1}'; echo '{"device": "a", "power": "301 W"}'
        echo '{"device": "a", "power": true}'; echo '{"device": "a", "power": 1e999}'
        echo '{"device": "a", "volts": 1, "power": 5}'; echo '{"device": "a", "volts": 2}'; sleep 60""")
    told = read_until(source, "power")
    assert told["power", "a", "accelerator"] == 5
    assert told["malformed_lines", "tool"] == 6
    first, second = source.notes()
    assert "a line is no JSON: 'npu0 301 W'" in first
    assert "key 'volts' is not known and left out; known: device, power, energy" in second
    assert source.notes() == []


def test_a_tool_that_dies_is_told_with_its_last_words(tool: Callable[[str], Tool]) -> None:
    source = tool("""echo '{"device": "a", "power": 5}'; echo 'no such board' >&2; exit 3""")
    said = notes_of(source, 1)
    assert said == ["ASSAY_SENSOR_COMMAND: the tool ended with exit code 3 after 1 lines; it said: no such board"]
    assert source.read() == []


def test_a_tool_that_floods_is_ended(tool: Callable[[str], Tool]) -> None:
    source = tool("exec yes")
    said = notes_of(source, 2)
    assert "was ended because" in said[1]
    assert int(said[1].split()[6]) >= MOST_MALFORMED


def test_a_tool_that_hangs_costs_no_time_and_ends_with_us(tool: Callable[[str], Tool], tmp_path: Path) -> None:
    source = tool(f"echo $$ > {shlex.quote(str(tmp_path))}/pid; trap '' TERM; sleep 600 & wait")
    wait_for(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text().strip()), 10, "the tool")
    began = time.monotonic()
    assert values(source) == {("malformed_lines", "tool"): 0}
    assert time.monotonic() - began < 1
    source.close()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 5, "the tool to be gone")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-tool --watch", "'no-such-tool' cannot be started (no such file or directory)"),
        ("npu 'open", "is no command line: no closing quotation"),
        (" ", "is not set"),
    ],
)
def test_a_tool_that_cannot_be_started_is_a_reason(command: str, reason: str) -> None:
    found = open_tool({"ASSAY_SENSOR_COMMAND": command})
    assert isinstance(found, str)
    assert reason in found
