"""Checks of the accelerator: who else uses it, and what slows its clock. NVML is asked where pynvml is installed."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from assay.doctor.finding import Finding, share
from assay.doctor.host import Host
from assay.report.quantities import count_of
from assay.units import format_si

BUSY_BAD = 0.05  # share of the time in which a kernel of others ran; what is measured shares the device with them
# torch's own context on the device, made by the noise run that reads this, takes about half a GB.
HELD_WARN = 1 << 30

# Bits of NVML's clock event reasons that mean trouble (nvml.h, nvmlClocksEventReason…). A power cap is how a card
# normally runs at full load; these are not.
_SLOWDOWNS = {0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake"}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML shows it. users: processes that compute on it; busy: share of the time; None: not told."""

    index: int
    name: str
    uuid: str
    users: tuple[int, ...]
    busy: float | None
    slowdowns: tuple[str, ...]


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
        driver = str(nvml.nvmlSystemGetDriverVersion())
        return Gpus(driver, tuple(_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())))
    except nvml.NVMLError as error:
        return Gpus(None, (), f"NVML: {error}")
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    busy = mask = None
    # Neither is told for a slice of a GPU (MIG) or by old cards.
    with contextlib.suppress(nvml.NVMLError):
        busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    with contextlib.suppress(nvml.NVMLError):
        mask = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    return Gpu(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        users=tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        busy=busy,
        slowdowns=tuple(name for bit, name in _SLOWDOWNS.items() if mask is not None and mask & bit),
    )


def device_users(host: Host, seen: Gpus) -> Finding:
    """Whether others compute on the GPUs that a run would use. Ask before anything of ours is on them."""
    if seen.reason is not None and host.text("proc/driver/nvidia/version") is None:
        return Finding("device users", "unknown", "no NVIDIA driver here; other vendors' users are not looked for")
    if seen.reason is not None:
        return Finding("device users", "unknown", seen.reason)
    ours = visible(seen.gpus, host.env)
    taken = [gpu for gpu in ours if gpu.users or (gpu.busy or 0) > BUSY_BAD]
    if not taken:
        return Finding("device users", "good", f"none on {count_of(len(ours), 'GPU')}, driver {seen.driver}")
    found = "; ".join(_use(gpu) for gpu in taken[:4]) + ("; …" if len(taken) > 4 else "")
    busy = any((gpu.busy or 0) > BUSY_BAD for gpu in taken)
    advice = "end those processes (nvidia-smi shows them), or choose free GPUs with CUDA_VISIBLE_DEVICES"
    return Finding("device users", "bad" if busy else "warn", found, advice)


def _use(gpu: Gpu) -> str:
    users = ", ".join(map(str, gpu.users[:4])) + (", …" if len(gpu.users) > 4 else "")
    who = f"pid {users}" if gpu.users else "processes that cannot be seen from here"
    return f"GPU {gpu.index}: {who}" + (f", {share(gpu.busy)} busy" if gpu.busy is not None else "")


def device_clocks(host: Host, seen: Gpus) -> Finding | None:
    """Whether heat or power slows a GPU down that should rest now; None where NVML tells of none."""
    slowed = [f"GPU {gpu.index}: {', '.join(gpu.slowdowns)}" for gpu in visible(seen.gpus, host.env) if gpu.slowdowns]
    if slowed:
        advice = "check cooling and power supply (nvidia-smi -q -d PERFORMANCE)"
        return Finding("device clocks", "bad", "; ".join(slowed[:4]), advice)
    return Finding("device clocks", "good", "nothing slows them down") if seen.gpus else None


def visible(gpus: Sequence[Gpu], env: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to a run; all where that cannot be told apart.

    Numbers count in CUDA's own order, which is NVML's where all cards are of one kind or CUDA_DEVICE_ORDER says so.
    """
    text = env.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return list(gpus)
    same_order = len({gpu.name for gpu in gpus}) == 1 or env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    chosen = list(_chosen(gpus, text, same_order))
    return list(gpus) if None in chosen else [gpu for gpu in chosen if gpu is not None]


def _chosen(gpus: Sequence[Gpu], text: str, same_order: bool) -> Iterator[Gpu | None]:
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word.startswith("-"):
            return  # -1 hides what comes behind it, all if it is first
        if word.isdigit():
            yield next((gpu for gpu in gpus if same_order and gpu.index == int(word)), None)
        else:
            yield next((gpu for gpu in gpus if gpu.uuid.startswith(word)), None)


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
