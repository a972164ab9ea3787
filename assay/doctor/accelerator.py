"""Checks of the accelerator: who else uses it, and what slows its clock. NVML is asked where pynvml is installed."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from assay.doctor.finding import Finding, share
from assay.doctor.host import Host
from assay.report.quantities import count_of
from assay.sensors.nvml import NO_FAULT, THROTTLE_REASONS, all_devices, as_text, visible
from assay.units import format_si

BUSY_BAD = 0.05  # share of the time in which a kernel of others ran; what is measured shares the device with them
# torch's own context on the device, made by the noise run that reads this, takes about half a GB.
HELD_WARN = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML shows it. users: processes that compute on it; busy: share of the time; None: not told.

    slowdowns: why its clock is held back now, as far as that is a fault.
    """

    index: int
    name: str
    uuid: str
    users: tuple[int, ...] | None
    busy: float | None
    slowdowns: tuple[str, ...] | None


@dataclass(frozen=True)
class Gpus:
    """What NVML told. reason: why it told nothing."""

    driver: str | None
    gpus: tuple[Gpu, ...]
    reason: str | None = None


def read_nvml() -> Gpus:
    """Every GPU that NVML shows here. Without pynvml, driver or rights: none, with the reason. Never raises."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return Gpus(None, (), "pynvml is not installed (pip install nvidia-ml-py)")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus(None, (), f"NVML: {error}")
    try:
        driver = None
        with contextlib.suppress(nvml.NVMLError):
            driver = as_text(nvml.nvmlSystemGetDriverVersion())
        return Gpus(driver, tuple(_read(nvml, index, *one) for index, one in enumerate(all_devices(nvml))))
    except nvml.NVMLError as error:
        return Gpus(None, (), f"NVML: {error}")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read(nvml: Any, index: int, handle: Any, about: Mapping[str, str]) -> Gpu:
    users = busy = slowdowns = None
    # Any of it may be refused: of a slice of a GPU (MIG), of an old card, of one that is lost.
    if handle is not None:
        # pynvml has an error of another family for a call that this driver is too old for.
        with contextlib.suppress(nvml.NVMLError, getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)):
            users = tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        with contextlib.suppress(nvml.NVMLError):
            busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        with contextlib.suppress(nvml.NVMLError):
            bits = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            slowdowns = tuple(name for name, bit in THROTTLE_REASONS.items() if bits & bit and name not in NO_FAULT)
    return Gpu(index, about["name"], about.get("uuid", ""), users, busy, slowdowns)


def _ours(host: Host, seen: Gpus) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to a run."""
    about = [{"name": gpu.name, "uuid": gpu.uuid} for gpu in seen.gpus]
    return [seen.gpus[number] for number, _ in visible(about, host.env)]


def device_users(host: Host, seen: Gpus) -> Finding:
    """Whether others compute on the GPUs that a run would use. Ask before anything of ours is on them."""
    if seen.reason is not None and host.text("proc/driver/nvidia/version") is None:
        return Finding("device users", "unknown", "no NVIDIA driver here; other vendors' users are not looked for")
    if seen.reason is not None:
        return Finding("device users", "unknown", seen.reason)
    ours = _ours(host, seen)
    taken = [gpu for gpu in ours if gpu.users or (gpu.busy or 0) > BUSY_BAD]
    silent = [str(gpu.index) for gpu in ours if gpu.users is None]
    if not taken and silent:
        return Finding("device users", "unknown", f"GPU {', '.join(silent)}: the driver does not tell who uses it")
    if not taken:
        driver = seen.driver or "of unknown version"
        return Finding("device users", "good", f"none on {count_of(len(ours), 'GPU')}, driver {driver}")
    found = "; ".join(_use(gpu) for gpu in taken[:4]) + ("; …" if len(taken) > 4 else "")
    busy = any((gpu.busy or 0) > BUSY_BAD for gpu in taken)
    advice = "end those processes (nvidia-smi shows them), or choose free GPUs with CUDA_VISIBLE_DEVICES"
    return Finding("device users", "bad" if busy else "warn", found, advice)


def _use(gpu: Gpu) -> str:
    pids = gpu.users or ()
    users = ", ".join(map(str, pids[:4])) + (", …" if len(pids) > 4 else "")
    who = f"pid {users}" if pids else "processes that cannot be seen from here"
    return f"GPU {gpu.index}: {who}" + (f", {share(gpu.busy)} busy" if gpu.busy is not None else "")


def device_clocks(host: Host, seen: Gpus) -> Finding | None:
    """Whether heat or power slows a GPU down that should rest now; None where there is none of ours."""
    ours = _ours(host, seen)
    slowed = [f"GPU {gpu.index}: {', '.join(gpu.slowdowns)}" for gpu in ours if gpu.slowdowns]
    if slowed:
        advice = "check cooling and power supply (nvidia-smi -q -d PERFORMANCE)"
        return Finding("device clocks", "bad", "; ".join(slowed[:4]), advice)
    silent = [str(gpu.index) for gpu in ours if gpu.slowdowns is None]
    if silent:
        return Finding(
            "device clocks", "unknown", f"GPU {', '.join(silent)}: the driver does not tell what slows it down"
        )
    return Finding("device clocks", "good", "nothing slows them down") if ours else None


def device_memory(total: int | None, free: int | None) -> Finding | None:
    """What is held on the accelerator although nothing of ours but torch's context is there. Bytes, as torch tells.

    None where there is no accelerator with memory of its own.
    """
    if total is None or free is None:
        return None
    held = total - free
    found = f"{format_si(held, 'B')} of {format_si(total, 'B')} held, torch's own context included"
    if held <= HELD_WARN:
        return Finding("device memory", "good", found)
    return Finding("device memory", "warn", found, "find who holds it and end that (nvidia-smi, rocm-smi, npu-smi)")
