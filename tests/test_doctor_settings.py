"""What was set for this process, which torch it has, and who is on the accelerator."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from assay.doctor import settings, software
from assay.doctor.accelerator import Gpu, Gpus, device_clocks, device_memory, device_users, read_nvml
from assay.doctor.host import Host, Space
from tests.conftest import ROOT
from tests.test_doctor import FOUR, expect, plant


@pytest.mark.parametrize(
    ("free", "state"), [(100 << 30, "good"), (1 << 30, "warn"), (1 << 20, "bad")]
)  # fmt: skip
def test_disk_is_that_of_the_nearest_folder(tmp_path: Path, free: int, state: str) -> None:
    finding = settings.disk(plant(tmp_path, {}, space=Space(200 << 30, free)), tmp_path / "runs" / "not yet")
    expect(finding, state, f"free for {tmp_path}")


def test_a_disk_that_cannot_be_written_is_bad(tmp_path: Path) -> None:
    not_even_for_root = Path("/proc/self/fdinfo/runs")
    expect(settings.disk(Host(tmp_path), not_even_for_root), "bad", "cannot be written")


@pytest.mark.parametrize(
    ("env", "state", "word"),
    [
        ({}, "good", "shared out"),
        ({"OMP_NUM_THREADS": "2"}, "good", "2 a rank"),
        ({"OMP_NUM_THREADS": "2,4"}, "good", "2 a rank"),
        ({"OMP_NUM_THREADS": "1"}, "warn", "1 of 4 cores"),
        ({"OMP_NUM_THREADS": "64"}, "warn", "64 on 4 cores"),
        ({"OMP_NUM_THREADS": "many"}, "warn", "no number"),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, "good", "2 a rank"),
        ({"MKL_NUM_THREADS": "8"}, "warn", "MKL_NUM_THREADS=8"),
        ({"OMP_PROC_BIND": "close"}, "warn", "same cores"),
        ({"OMP_PROC_BIND": "false"}, "good", "shared out"),
    ],
)
def test_thread_settings(tmp_path: Path, env: Mapping[str, str], state: str, word: str) -> None:
    expect(settings.threads(plant(tmp_path, FOUR, env)), state, word)


def test_thread_settings_without_known_cores(tmp_path: Path) -> None:
    expect(settings.threads(plant(tmp_path, {}, {"OMP_NUM_THREADS": "3"})), "unknown", "how many cores")


@pytest.mark.parametrize(
    ("env", "state", "word"),
    [
        ({"CUDA_LAUNCH_BLOCKING": "0", "NCCL_DEBUG": "WARN", "LD_PRELOAD": "libjemalloc.so"}, "good", "none"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "warn", "every kernel waits"),
        ({"NCCL_DEBUG": "trace", "NCCL_P2P_DISABLE": "1"}, "warn", "NCCL_P2P_DISABLE=1"),
        ({"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}, "warn", "every collective"),
        ({"LD_PRELOAD": "/usr/lib/libasan.so.8"}, "warn", "sanitizer"),
    ],
)
def test_debug_settings(tmp_path: Path, env: Mapping[str, str], state: str, word: str) -> None:
    expect(settings.debugging(plant(tmp_path, {}, env)), state, word)


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.6.0", "good"), ("2.13.0+cpu", "good"), ("3.0a1", "good"), ("2.5.1", "bad"), ("1.13.1", "bad"), (None, "bad"), ("main", "unknown")],
)  # fmt: skip
def test_torch_version(version: str | None, state: str) -> None:
    assert software.torch(version).state == state


def test_the_oldest_torch_is_that_of_the_package() -> None:
    assert f'"torch>={software.OLDEST_TORCH[0]}.{software.OLDEST_TORCH[1]}"' in (ROOT / "pyproject.toml").read_text()


def gpu(
    index: int,
    users: tuple[int, ...] | None = (),
    busy: float | None = 0.0,
    slowdowns: tuple[str, ...] | None = (),
) -> Gpu:
    return Gpu(index, "H100", f"GPU-{index}abc", users, busy, slowdowns)


@pytest.mark.parametrize(
    ("gpus", "env", "state", "word"),
    [
        ((gpu(0), gpu(1)), {}, "good", "none on 2 GPUs, driver 550.54"),
        ((gpu(0), gpu(1, (4242,))), {}, "warn", "GPU 1: pid 4242, 0.0 % busy"),
        ((gpu(0, (7,), None),), {}, "warn", "GPU 0: pid 7"),
        ((gpu(0, (7,), 0.9),), {}, "bad", "90 % busy"),
        ((gpu(0, (), 0.9),), {}, "bad", "cannot be seen from here"),
        ((gpu(0, (7,), 0.9), gpu(1)), {"CUDA_VISIBLE_DEVICES": "1"}, "good", "none on 1 GPU,"),
        ((gpu(0, (7,), 0.9), gpu(1)), {"CUDA_VISIBLE_DEVICES": "GPU-1a"}, "good", "none on 1 GPU,"),
        ((gpu(0, (7,), 0.9), gpu(1)), {"CUDA_VISIBLE_DEVICES": "MIG-77"}, "bad", "GPU 0"),
        ((gpu(0, None, None), gpu(1)), {}, "unknown", "GPU 0: the driver does not tell"),
        ((gpu(0, None, None), gpu(1, (7,))), {}, "warn", "GPU 1: pid 7"),
        ((gpu(0, None, 0.9),), {}, "bad", "cannot be seen from here, 90 % busy"),
    ],
)
def test_device_users(tmp_path: Path, gpus: tuple[Gpu, ...], env: Mapping[str, str], state: str, word: str) -> None:
    expect(device_users(plant(tmp_path, {}, env), Gpus("550.54", gpus)), state, word)


def test_device_users_that_nobody_tells_of_are_unknown(tmp_path: Path) -> None:
    reason = Gpus(None, (), "pynvml is not installed (pip install nvidia-ml-py)")
    expect(device_users(plant(tmp_path, {}), reason), "unknown", "no NVIDIA driver")
    expect(device_users(plant(tmp_path, {"proc/driver/nvidia/version": "550"}), reason), "unknown", "pip install")


def test_device_clocks(tmp_path: Path) -> None:
    host = Host(tmp_path, {})
    assert device_clocks(host, Gpus(None, (), "none here")) is None
    for names, state, word in (
        ((), "good", "nothing"),
        (("hw_thermal",), "bad", "GPU 0: hw_thermal"),
        (None, "unknown", "GPU 0: the driver does not tell"),
    ):
        finding = device_clocks(host, Gpus("1", (gpu(0, slowdowns=names),)))
        assert finding is not None
        expect(finding, state, word)


def test_device_memory() -> None:
    assert device_memory(None, None) is None
    mine, others = device_memory(80 << 30, (80 << 30) - (500 << 20)), device_memory(80 << 30, 60 << 30)
    assert mine is not None
    assert others is not None
    expect(mine, "good", "524 MB")
    expect(others, "warn", "21.5 GB of 85.9 GB")


def test_nvml_without_its_library_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # no pynvml here, whatever this machine has
    monkeypatch.delitem(__import__("sys").modules, "pynvml", raising=False)
    seen = read_nvml()
    assert seen.gpus == ()
    assert "pip install" in str(seen.reason)
