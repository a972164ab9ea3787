"""From sensors' records to energy, figures and doubts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.estimates import Estimate
from assay.record import Block, Header, RankFile, TagValue, encode_block, encode_header
from assay.scoring.energy import derive, device_energy, device_figures, energy_between, flops_per_watt, measured_spans
from assay.scoring.result import Figure
from assay.scoring.sensors import SensorFile, SensorSeries, doubts, increase, notes, read_sensors, stolen_share
from assay.scoring.sensors import derive as derive_state


def header(rank: int = 0, world: int = 2, clock: str = "boot", device: str = "cpu", local: int = 2) -> Header:
    return Header(rank, world, rank % local, local, f"host-{clock}", 1, clock, device, "", "gloo", "s", 0.0, 0.0)


def series(
    metric: str, values: list[float], times: list[float] | None = None, device: str = "package-0", **tags: TagValue
) -> SensorSeries:
    at = np.arange(len(values), dtype=float) if times is None else np.array(times)
    known: Mapping[str, TagValue] = {"source": "rapl", "part": "package", **tags}
    return SensorSeries(device, metric, "", known, at, np.array(values, dtype=float), "boot", "host-boot")


def file_of(*found: SensorSeries, clock: str = "boot", no_power: str | None = None) -> SensorFile:
    return SensorFile(Path("sensors-00000.jsonl"), header(clock=clock), list(found), [], no_power, [])


watts = st.lists(st.floats(0, 1000), min_size=4, max_size=40)


@given(watts, st.data())
def test_a_counter_and_the_powers_tell_the_same_energy(power: list[float], data: st.DataObject) -> None:
    # Power is linear between readings, so the trapezoids are exact, and so is the counter at each reading.
    values = np.array(power)
    counter = np.concatenate(([0.0], np.cumsum((values[1:] + values[:-1]) / 2)))
    last = len(power) - 1
    begin = data.draw(st.floats(0, last - 2))
    end = data.draw(st.floats(begin + 2, last))
    by_power, _ = energy_between(series("power", power), (begin, end))
    by_counter, _ = energy_between(series("energy", counter.tolist()), (begin, end))
    assert by_power is not None
    assert by_counter is not None
    assert by_counter.low is not None
    assert by_counter.high is not None
    slack = 1e-6
    assert by_counter.low - slack <= by_power.value <= by_counter.high + slack
    assert by_counter.low - slack <= by_counter.value <= by_counter.high + slack
    # Between two readings the counter is taken for straight; power that changes by d bends it by d/8 at most.
    bend = float(np.abs(np.diff(values)).max()) / 8
    assert abs(by_counter.value - by_power.value) <= 2 * bend + slack
    whole, _ = energy_between(series("power", power), (0, last))
    counted, _ = energy_between(series("energy", counter.tolist()), (0, last))
    assert whole is not None
    assert counted is not None
    assert whole.value == pytest.approx(counted.value, abs=slack)


@pytest.mark.parametrize(
    ("times", "span", "reason"),
    [
        ([1, 2, 3, 4], (0.5, 3), "begin too late"),
        ([1, 2, 3, 4], (2, 4.5), "end too early"),
        ([1, 2, 3, 4], (2.2, 2.9), "too short for readings of package-0 1 s apart"),
        ([1, 2, 3, 7, 8, 9], (1, 9), "was not read for 4 s (usually every 1 s)"),
        ([1], (1, 2), "end too early"),
    ],
)
@pytest.mark.parametrize("metric", ["power", "energy"])
def test_a_span_that_readings_do_not_cover_has_no_energy(
    metric: str, times: list[float], span: tuple[float, float], reason: str
) -> None:
    estimate, why = energy_between(series(metric, [5.0] * len(times), times), span)
    assert estimate is None
    assert reason in why


def test_a_gap_outside_the_span_does_not_matter() -> None:
    estimate, _ = energy_between(series("power", [10] * 6, [1, 2, 3, 9, 10, 11]), (1, 3))
    assert estimate is not None
    assert estimate.value == 20


def test_the_counter_comes_before_the_powers_and_these_where_it_fails() -> None:
    power, energy = series("power", [10] * 6), series("energy", [0, 7, 14, 21, 28, 35])
    assert device_energy([power, energy], "package-0", (1, 4))[0] == energy_between(energy, (1, 4))[0]
    late = series("energy", [0, 7, 14], [3, 4, 5])
    estimate, _ = device_energy([power, late], "package-0", (1, 4))
    assert estimate is not None
    assert estimate.value == 30
    assert device_energy([power], "gpu0", (1, 4)) == (None, "gpu0 has no sensor of power or energy")


def test_a_counters_rise_is_taken_around_the_span_and_over_a_reset() -> None:
    counter = series("link_errors", [5, 5, 8, 8, 2, 3], [0, 10, 20, 30, 40, 50])
    assert increase(counter, (12, 18)) == 3, "a reading every 10 s: the rise may have been in the span"
    assert increase(counter, (21, 29)) == 0
    assert increase(counter, (0, 50)) == 4
    assert increase(series("link_errors", [5]), (0, 50)) is None


def test_stolen_share() -> None:
    steal = series("cpu_steal", [0, 1, 2, 3], device="cpu", cores=4)
    assert stolen_share(steal, (0.5, 1.5)) == pytest.approx(0.25)
    assert stolen_share(series("cpu_steal", [0, 1]), (0, 1)) is None


def figure(figures: list[Figure], metric: str, **tags: object) -> Figure:
    (found,) = [f for f in figures if f.metric == metric and all(f.tags.get(k) == v for k, v in tags.items())]
    return found


def test_figures_of_devices() -> None:
    found = [
        series("power", [100, 200, 300]),
        series("temperature", [50, 71, 60], device="card0", sensor="edge"),
        series("temperature", [55, 80, 60], device="card0", sensor="junction"),
        series("clock", [1e9, 3e9, 3e9], device="cpu", domain="core", cpu=0),
        series("clock", [2e9, 2e9, 3e9], device="cpu", domain="core", cpu=4),
        series("link_errors", [5, 5, 9], device="eth0", counter="rx_dropped"),
        series("link_errors", [5, 5, 5], device="eth0", counter="rx_errors"),
        series("throttle_time", [0, 0.5, 1], device="package-0"),
        series("utilisation", [0.2, 0.9, 1.0], device="gpu0"),
        series("memory_used", [1e9, 7e9, 5e9], device="gpu0"),
    ]
    state = derive_state([file_of(*found)])
    hottest = figure(state, "temperature_max")
    assert hottest.value == 80
    assert hottest.estimate is not None
    assert "junction" in hottest.estimate.method
    assert figure(state, "clock_min", domain="core").value == 1e9
    assert figure(state, "clock_median", domain="core").value == 2.5e9
    assert figure(state, "throttled_share").value == 0.5
    (errors,) = [f for f in state if f.metric == "link_errors"]
    assert (errors.value, errors.tags["counter"]) == (4, "rx_dropped")
    assert figure(device_figures([file_of(*found)]), "power_mean").value == 200
    assert figure(device_figures([file_of(*found)]), "energy").value == 400
    only = derive_state([file_of(*found)], {"boot": (1.5, 2.5)})
    assert figure(only, "temperature_max").value == 60
    assert figure(state, "utilisation_mean", device="gpu0").value == pytest.approx(0.7)
    assert (figure(state, "memory_used_max").value, figure(state, "memory_used_max").unit) == (7e9, "B")
    assert figure(only, "utilisation_mean").value == 1.0
    assert figure(only, "memory_used_max").value == 5e9


def test_doubts_name_what_was_wrong_and_where() -> None:
    found = [
        series("cpu_steal", [0, 1, 2], device="cpu", cores=2),
        series("cpu_throttled", [0, 0, 0.5], device="cpu", cgroup="/pod"),
        series("throttle_events", [3, 3, 5]),
        series("link_errors", [0, 0, 1], device="mlx5_0/1", counter="link_downed"),
        series("link_errors", [0, 0, 1], device="eth0", counter="rx_dropped"),
    ]
    assert doubts([file_of(*found)]) == [
        ("stolen_time", "cpu on host-boot", "the hypervisor gave 50.0% of the cores' time to others"),
        ("cpu_quota", "cpu on host-boot", "the quota of cgroup /pod held threads back for 0.5 s in all"),
        ("throttled", "package-0 on host-boot", "was slowed down by heat 2 times"),
        ("link_errors", "mlx5_0/1 on host-boot", "link_downed rose by 1"),
    ]
    quiet = series("cpu_steal", [0, 0.01, 0.02], device="cpu", cores=2)
    assert doubts([file_of(quiet)]) == []


def test_a_drivers_errors_are_no_memory_errors_unless_they_are_about_memory() -> None:
    # 48 was followed by 45 within one reading: the newest number alone would hide it.
    found = [
        series("xid_events", [0, 0, 1], device="gpu0", kind="memory"),
        series("xid_last", [0, 0, 48], device="gpu0", kind="memory"),
        series("xid_events", [0, 1, 3, 4], device="gpu0", kind="other"),
        series("xid_last", [0, 13, 45, 79], device="gpu0", kind="other"),
    ]
    memory = ("memory_errors", "gpu0 on host-boot", "the driver reported 1 XID errors, the last one of number 48")
    other = "the driver reported {} XID errors, the last one of number {}"
    assert doubts([file_of(*found)]) == [memory, ("driver_errors", "gpu0 on host-boot", other.format(4, 79))]
    (early,) = doubts([file_of(*found)], {"boot": (0, 0.5)})
    assert early == ("driver_errors", "gpu0 on host-boot", other.format(1, 13)), "the span's own, not the last of all"


# ---- why readings are missing ----


def ranks_of(clock: str, last: float, note: str | None = None) -> RankFile:
    blocks = [Block("call_time", "s", np.array([1.0]), {}, None, 1.0, last)]
    if note:
        blocks.append(Block("sensor_note", "1", np.array([np.nan]), {}, None, last + 90, last + 90, note))
    return RankFile(Path("rank-00000.jsonl"), header(clock=clock), blocks, [], False)


def test_whole_readings_need_no_note_and_neither_does_sampling_that_was_off() -> None:
    steal = series("cpu_steal", [0, 0, 0, 0], [1, 2, 3, 4], device="cpu")
    assert notes([file_of(steal)], [ranks_of("boot", 3.9), ranks_of("boot", 6.9)]) == []
    assert notes([], [ranks_of("boot", 9)]) == []


def test_what_is_missing_of_the_sensors_is_told_host_by_host() -> None:
    steal = series("cpu_steal", [0, 0, 0, 0], [1, 2, 3, 4], device="cpu")
    slow = series("link_errors", [0, 0], [1, 2.5], device="eth0")
    early = "host-boot: the sensors' readings end 30 s before the ranks' records"
    failed = "the sensors' process ended with exit code -9"
    assert notes([file_of(steal, slow)], [ranks_of("boot", 34, failed), ranks_of("boot", 30)]) == [
        f"host-boot: {failed}",
        early,
    ]
    assert notes([], [ranks_of("boot", 34, failed)]) == [f"host-boot: {failed}"]
    two = [ranks_of("boot", 4), ranks_of("b", 4), ranks_of("b", 4)]
    assert notes([file_of(steal)], two) == ["host-b: no sensors were recorded"]
    assert notes([file_of(clock="b"), file_of(steal)], two) == ["host-b: no sensors were recorded"]
    noted = replace(file_of(steal), notes=["gpu0: GPU is lost"])
    assert notes([noted], [ranks_of("boot", 4)]) == ["host-boot: gpu0: GPU is lost"]


# ---- a training case ----

TAGS = {"model": "tiny", "phase": "measured"}


def block(metric: str, samples: list[float], first: float, last: float, **tags: TagValue) -> Block:
    return Block(metric, "", np.array(samples), {**TAGS, **tags}, 0, first, last)


def training(
    clock: str = "boot", device: str = "cpu", ranks: tuple[int, ...] = (0, 1), world: int = 2
) -> list[RankFile]:
    """Steps of 1 s each: 3 warm-up steps from 0 to 3 s, 4 measured ones from 3 to 7 s in two blocks."""
    files = []
    for rank in ranks:
        blocks = [
            block("step_time", [1, 1, 1], 1, 3, phase="warmup"),
            block("step_time", [1, 1], 4, 5),
            block("step_time", [1, 1], 6, 7),
        ]
        if rank == 0:
            blocks += [block("tokens", [50, 50, 50, 50], 4, 7), block("flops_per_token", [1e6], 0, 0)]
        files.append(RankFile(Path(f"{rank}"), header(rank, world, clock, device, len(ranks)), blocks, [], False))
    return files


def test_energy_per_token_is_all_packages_over_the_measured_steps() -> None:
    packages = [
        series("energy", [100 * t for t in range(9)], device="package-0"),
        series("energy", [50 * t for t in range(9)], device="package-1"),
        series("energy", [10 * t for t in range(9)], device="package-0/dram", part="subzone"),
        series("energy", [999 * t for t in range(9)], device="psys", part="platform"),
    ]
    assert measured_spans(training()) == {"boot": (3.0, 7.0)}
    figures = derive(training(), [file_of(*packages)])
    energy = figure(figures, "energy_per_token")
    assert energy.value == pytest.approx(150 * 4 / 200)
    assert energy.estimate is not None
    assert energy.estimate.method.startswith("processor packages only, by RAPL: rise of the energy counter")
    assert energy.tags == {"model": "tiny", "world": 2}
    assert figure(figures, "flops_per_watt").value == pytest.approx(1e6 * 200 / (150 * 4))


def test_only_the_accelerators_that_ranks_used_are_counted() -> None:
    cards = [
        series("power", [100 * (n + 1)] * 9, device=f"gpu{n}", source="nvml", part="accelerator", index=n)
        for n in range(4)
    ]
    packages = series("energy", [5000 * t for t in range(9)])
    energy = figure(derive(training(device="cuda"), [file_of(*cards, packages)]), "energy_per_token")
    assert energy.value == pytest.approx((100 + 200) * 4 / 200)
    assert energy.estimate is not None
    assert "devices only (2 a host), by nvml" in energy.estimate.method
    unknown = [series("power", [1.0] * 9, device=f"c{n}", source="hwmon", part="accelerator") for n in range(4)]
    energy = figure(derive(training(device="cuda"), [file_of(*unknown)]), "energy_per_token")
    assert energy.reason == "host-boot: 4 devices have sensors; which of them the 2 ranks used is unknown"
    energy = figure(derive(training(device="cuda"), [file_of(cards[0])]), "energy_per_token")
    assert energy.reason == "host-boot: 1 of 2 devices have a power sensor"


def test_energy_of_several_hosts_is_known_only_if_every_host_tells() -> None:
    files = training("a", ranks=(0, 1), world=4) + training("b", ranks=(2, 3), world=4)
    meter = series("energy", [100 * t for t in range(9)])
    both = [file_of(meter, clock="a"), file_of(meter, clock="b")]
    assert figure(derive(files, both), "energy_per_token").value == pytest.approx(2 * 400 / 200)
    one = [both[0], file_of(clock="b", no_power="no power sensor (nvml: none)")]
    energy = figure(derive(files, one), "energy_per_token")
    assert (energy.estimate, energy.reason) == (None, "host-b: no power sensor (nvml: none)")
    assert figure(derive(files, both[:1]), "flops_per_watt").reason == "host-b: no sensors were recorded"
    short = file_of(series("energy", [1, 2, 3], [0, 1, 2]), clock="b")
    assert "end too early" in str(figure(derive(files, [both[0], short]), "energy_per_token").reason)


def test_a_case_without_steps_has_no_energy_per_token() -> None:
    assert derive([], [file_of(series("energy", [0, 1, 2]))]) == []


def test_flops_per_watt_keeps_its_bounds() -> None:
    found = flops_per_watt(Estimate(100, 90, 110, 9, "rate"), Estimate(50, 45, 55, 9, "power"))
    assert (found.value, found.low, found.high) == (2, 90 / 55, 110 / 45)
    assert flops_per_watt(Estimate(100, None, None, 9, "rate"), Estimate(50, 45, 55, 9, "power")).low is None


# ---- the file ----


def line(metric: str, samples: list[float | None], first: float, last: float, **tags: TagValue) -> str:
    reason = "why" if None in samples else None
    return encode_block(metric, "1", samples, tags=tags, first_step=None, t_first=first, t_last=last, reason=reason)


def test_samples_find_their_stamps_whatever_is_lost_between(tmp_path: Path) -> None:
    text = [
        encode_header(header()),
        line("sensor_time", [1, 2], 1, 2, source="a"),
        line("sensor_time", [10], 10, 10, source="b"),
        line("power", [5, None], 1, 2, source="a", device="d"),
        line("power", [7], 10, 10, source="b", device="e"),
        "a line of somebody else\n",  # where the stamps of 3 and 4 were
        line("power", [6, 6], 3, 4, source="a", device="d"),
        line("sensor_time", [5, 6], 5, 6, source="a"),
        line("power", [8, 9], 5, 6, source="a", device="d"),
        line("sensor_note", [None], 6, 6, source="a"),
        line("sensor_time", [7, 8], 7, 8, source="a"),
        line("power", [1, 1], 7, 8, source="a", device="d")[:-9],  # killed here
    ]
    (tmp_path / "sensors-00000.jsonl").write_text("".join(text))
    (file,) = read_sensors(tmp_path)
    told = {one.device: (one.times.tolist(), one.values.tolist()) for one in file.series}
    assert told == {"d": ([1, 5, 6], [5, 8, 9]), "e": ([10], [7])}
    assert file.notes == ["why"]
    assert len(file.garbage) == 1
    assert file.span == (1, 10)


def test_a_run_without_sensors_has_none(tmp_path: Path) -> None:
    assert read_sensors(tmp_path) == []
    (tmp_path / "sensors-00000.jsonl").write_text("")
    (file,) = read_sensors(tmp_path)
    assert (file.header, file.series, file.span) == (None, [], None)
    assert derive_state([file]) == []
    assert doubts([file]) == []
