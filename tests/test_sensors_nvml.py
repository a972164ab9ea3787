"""NVML, by a library of our own that answers as a driver would (tests/fake_nvml.c)."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from assay.placement import Placement
from assay.scoring.energy import device_energy
from assay.scoring.sensors import SensorFile, derive, doubts, pick, read_sensors
from assay.sensors.nvml import visible
from assay.sensors.sidecar import command
from tests.conftest import environment, wait_for


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_nvml.c")
    argv = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(argv, check=True)
    return folder


def sampled(library: Path, out: Path, interval: float, seconds: float, **env: str) -> SensorFile:
    path = out / "sensors-00000.jsonl"
    argv = [*command(path, Placement(0, 1, 0, 1, "none"), "cuda", ""), f"--interval={interval}", f"--root={out}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment(LD_LIBRARY_PATH=str(library), **env)):
        wait_for(lambda: path.exists() and bool(path.read_text()), 20, "the header")
        time.sleep(seconds)
    (file,) = read_sensors(out)
    return file


def test_readings_counters_and_events_of_a_device(library: Path, tmp_path: Path) -> None:
    file = sampled(library, tmp_path, 0.1, 1.5)
    assert file.garbage == []
    assert file.header is not None
    about = file.header.about["sources"]["nvml"]
    assert about["gpu1"] == {"name": "Fake Accelerator", "uuid": "GPU-00000001"}
    first = {
        one.metric: one
        for one in file.series
        if one.device == "gpu0" and one.metric != "throttled" and one.tags.get("kind") != "memory"
    }
    latest = {metric: series.values[-1] for metric, series in first.items()}
    assert {key: latest[key] for key in ("power", "temperature", "utilisation", "memory_used", "xid_events", "xid_last")} == {
        "power": 300.0, "temperature": 60.0, "utilisation": 0.97, "memory_used": 1 << 20, "xid_events": 1.0, "xid_last": 79.0,
    }  # fmt: skip
    clocks = {str(one.tags["domain"]): one.values[0] for one in pick(file.series, "clock")}
    assert clocks == {"sm": 1.41e9, "memory": 1.593e9}
    energy = first["energy"]
    estimate, reason = device_energy(file.series, "gpu0", (energy.times[2], energy.times[-3]))
    assert estimate is not None, reason
    assert estimate.value / (energy.times[-3] - energy.times[2]) == pytest.approx(300, rel=0.05)


def test_what_a_device_does_not_support_is_absent(library: Path, tmp_path: Path) -> None:
    file = sampled(library, tmp_path, 0.1, 0.3)
    assert {one.metric for one in file.series if one.device == "gpu1"} == {"temperature"}
    assert file.notes == [], "not supported is no failure"


def test_throttling_and_errors_are_doubts_but_the_power_limit_is_none(library: Path, tmp_path: Path) -> None:
    file = sampled(library, tmp_path, 0.1, 1.0)
    (share,) = [figure for figure in derive([file]) if figure.metric == "throttled_share"]
    assert share.value == 1.0
    assert share.estimate is not None
    assert "sw_power_cap 100%" in share.estimate.method
    kinds = [kind for kind, _, _ in doubts([file])]
    assert sorted(kinds) == ["driver_errors", "memory_errors", "throttled"]
    told = " ".join(message for _, _, message in doubts([file]))
    assert "(hw_thermal)" in told
    assert "the last one of number 79" in told
    assert "memory errors could not be corrected" in told


def test_a_device_that_is_lost_leaves_the_other_readings(library: Path, tmp_path: Path) -> None:
    file = sampled(library, tmp_path, 0.01, 1.2)
    assert file.notes == ["gpu0: a query failed that had worked before: GPU is lost"]
    (power,) = pick(file.series, "power")
    throttled = pick(file.series, "throttled")
    assert {one.times[-1] for one in throttled} != {power.times[-1]}
    assert all(one.times[-1] < power.times[-1] for one in throttled)


def test_only_devices_that_the_ranks_see_are_watched(library: Path, tmp_path: Path) -> None:
    file = sampled(library, tmp_path, 0.1, 0.2, CUDA_VISIBLE_DEVICES="1")
    assert {one.device for one in file.series} == {"gpu1"}
    assert {one.tags["index"] for one in file.series} == {0}


def test_the_doctor_has_the_findings_of_every_device_although_one_refuses_most(library: Path) -> None:
    # This driver tells neither its version nor who computes on a device.
    code = "from assay.doctor.accelerator import read_nvml; print(*read_nvml().gpus, sep=chr(10))"
    env = environment(LD_LIBRARY_PATH=str(library))
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "Gpu(index=0, name='Fake Accelerator', uuid='GPU-00000000', users=None, busy=0.97, slowdowns=())",
        "Gpu(index=1, name='Fake Accelerator', uuid='GPU-00000001', users=None, busy=None, slowdowns=None)",
    ]


def test_without_a_driver_or_the_package_the_reason_says_so(tmp_path: Path, library: Path) -> None:
    code = "from assay.sensors.nvml import open_nvml; print(open_nvml({}))"
    for env, reason in (
        ({}, "libnvidia-ml.so.1 is not there"),
        ({"LD_LIBRARY_PATH": str(library)}, "nvidia-ml-py is not"),
    ):
        # -S: no site-packages, so no pynvml
        argv = [sys.executable, "-S", "-c", code]
        done = subprocess.run(
            argv, env=environment(**env), cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        )
        assert reason in done.stdout


EQUAL = [{"name": "A", "uuid": f"GPU-{number}{number}"} for number in range(4)]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ({"CUDA_VISIBLE_DEVICES": "3, 1"}, [(3, 0), (1, 1)]),
        ({"CUDA_VISIBLE_DEVICES": "2,9,1"}, [(2, 0)]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-2,GPU-0"}, [(2, 0), (0, 1)]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1,0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, [(0, None), (1, None), (2, None), (3, None)]),
    ],
)  # fmt: skip
def test_visible_devices(env: dict[str, str], expected: list[tuple[int, int | None]]) -> None:
    assert visible(EQUAL, env) == expected


def test_of_unlike_devices_the_ranks_order_is_unknown_unless_it_is_the_bus() -> None:
    unlike = [{"name": "A", "uuid": "GPU-a"}, {"name": "B", "uuid": "GPU-b"}]
    assert visible(unlike, {"CUDA_VISIBLE_DEVICES": "1"}) == [(0, None), (1, None)]
    assert visible(unlike, {"CUDA_VISIBLE_DEVICES": "GPU-b"}) == [(1, 0)]
    assert visible(unlike, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == [(1, 0)]
