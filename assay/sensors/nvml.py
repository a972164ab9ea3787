"""NVIDIA devices through NVML, by the package nvidia-ml-py (`pynvml`), where both are there.

Two sources share the library: `nvml` for what changes within a second, `nvml-health` for counters and what changes
slowly. Each query is tried once when it is opened; what a device does not support is never asked again.
"""

import ctypes
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assay.record import TagValue
from assay.sensors.source import Gauge, Reading, Source

HEALTH_PERIOD = 10.0
_LIBRARY = "libnvidia-ml.so.1"
_MOST_EVENTS = 64  # taken at one reading; the next takes the rest

# Bits of the clocks' event reasons (nvml.h) that slow a busy device down; idle and set clocks are no fault.
THROTTLE_REASONS = {
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "hw_power_brake": 0x80,
}
NO_FAULT = {"sw_power_cap"}
"""Reasons that are none for doubt: at its power limit a busy device works as it was built to."""

# Numbers of XID errors that tell of the device's memory (NVIDIA's list): an uncorrectable error (48), rows or pages
# replaced, or not (63, 64), too many corrected ones (92), an uncorrectable one contained or not (94, 95). Others may be
# the program's own fault.
_MEMORY_XIDS = {48, 63, 64, 92, 94, 95}

Query = Callable[[], list[Reading]]


def open_nvml(env: Mapping[str, str]) -> list[Source] | str:
    """The two sources, for the devices that CUDA_VISIBLE_DEVICES leaves the ranks, or why there are none."""
    try:
        ctypes.CDLL(_LIBRARY)  # much cheaper than importing pynvml only to hear that there is no driver
    except OSError:
        return f"{_LIBRARY} is not there (no NVIDIA driver)"
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "the NVIDIA driver is there, but the package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
        found = all_devices(nvml)
    except nvml.NVMLError as error:
        return f"NVML: {error}"
    about = [known for _, known in found]
    chosen = visible(about, env)
    if not chosen:
        hidden = f", and CUDA_VISIBLE_DEVICES={env['CUDA_VISIBLE_DEVICES']!r} hides them all" if about else ""
        return f"NVML sees {len(about)} devices{hidden}"
    devices = []
    for number, index in chosen:
        if found[number][0] is None:
            continue
        tags: dict[str, TagValue] = {"device": f"gpu{number}", "part": "accelerator"}
        if index is not None:
            tags["index"] = index
        devices.append((found[number][0], tags))
    if not devices:
        return f"NVML refuses every device: {about[chosen[0][0]]['refused']}"
    known = {f"gpu{number}": about[number] for number, _ in chosen}
    quick = {str(tags["device"]): _quick(nvml, handle, tags) for handle, tags in devices}
    slow = {str(tags["device"]): _slow(nvml, handle, tags) for handle, tags in devices}
    events = _Events(nvml, devices)
    if events.gauges:
        slow["NVML's events"] = [events.read]
    return [Nvml(nvml, "nvml", 0.0, quick, known), Nvml(nvml, "nvml-health", HEALTH_PERIOD, slow, {})]


def visible(devices: Sequence[Mapping[str, str]], env: Mapping[str, str]) -> list[tuple[int, int | None]]:
    """(NVML's number, the number by which ranks know it) of the devices that CUDA_VISIBLE_DEVICES leaves.

    The ranks' number is None where it cannot be known: for slices of a device (MIG), and where devices differ and CUDA
    orders them by speed. Then all devices are watched.
    """
    names = {device["name"] for device in devices}
    in_order = len(names) == 1 or env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    wanted = env.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [(number, number if in_order else None) for number in range(len(devices))]
    found: list[int] = []
    for word in (part.strip() for part in wanted.split(",")):
        if word.startswith("MIG-"):
            return [(number, None) for number in range(len(devices))]
        if word.startswith("GPU-"):
            matches = [number for number, device in enumerate(devices) if device.get("uuid", "").startswith(word)]
        elif not in_order:
            return [(number, None) for number in range(len(devices))]
        else:
            matches = [int(word)] if word.isdigit() and int(word) < len(devices) else []
        if len(matches) != 1:
            break  # CUDA itself stops at the first entry that names no device
        found += matches
    return [(number, index) for index, number in enumerate(found)]


def all_devices(nvml: Any) -> list[tuple[Any, dict[str, str]]]:
    """Every device by NVML's numbers: its handle, and its `name` (may be empty) and `uuid` as far as it tells them.

    A device that NVML refuses (one that fell off the bus, say) has no handle but None, and the reason as `refused`.
    nvml: the module pynvml, initialised. Raises its NVMLError if devices cannot even be counted.
    """
    found: list[tuple[Any, dict[str, str]]] = []
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
        except nvml.NVMLError as error:
            found.append((None, {"name": "", "refused": str(error)}))
        else:
            found.append((handle, _about(nvml, handle)))
    return found


def _about(nvml: Any, handle: Any) -> dict[str, str]:
    asked = {"name": nvml.nvmlDeviceGetName, "uuid": nvml.nvmlDeviceGetUUID}
    known = {"name": ""}
    for key, ask in asked.items():
        try:
            known[key] = as_text(ask(handle))
        except nvml.NVMLError:
            continue
    return known


def as_text(answer: str | bytes) -> str:
    """NVML's text: older versions of pynvml give bytes."""
    return answer.decode() if isinstance(answer, bytes) else answer


class Nvml:
    """A source: queries of all devices, device by device."""

    def __init__(
        self,
        nvml: Any,
        name: str,
        period: float,
        queries: Mapping[str, list[Query]],
        about: dict[str, dict[str, str]],
    ) -> None:
        self.name = name
        self.period = period
        self.about = about
        self._nvml = nvml
        self._notes: list[str] = []
        self._failed: set[str] = set()
        self._queries: list[tuple[str, Query]] = []
        for device, asked in queries.items():
            for query in asked:
                try:
                    query()
                except nvml.NVMLError:
                    continue  # the device does not have it
                self._queries.append((device, query))

    def read(self) -> list[Reading]:
        """Every query's readings; a query that fails now gives none, and its device's first failure is noted."""
        readings: list[Reading] = []
        for device, query in self._queries:
            try:
                readings += query()
            except self._nvml.NVMLError as error:
                if device not in self._failed:
                    self._failed.add(device)
                    self._notes.append(f"{device}: a query failed that had worked before: {error}")
        return readings

    def notes(self) -> list[str]:
        """First failures of devices."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Ask no more. The library is left open: it ends with the process, and leaving it can take seconds."""
        self._queries = []


def _quick(nvml: Any, handle: Any, tags: Mapping[str, TagValue]) -> list[Query]:
    return [
        _one(Gauge("power", "W", tags), lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        _one(Gauge("energy", "J", tags), lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
        _one(Gauge("temperature", "degC", tags), lambda: nvml.nvmlDeviceGetTemperature(handle, 0)),
        _one(
            Gauge("clock", "Hz", {**tags, "domain": "sm"}),
            lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1_000_000,
        ),
        _throttling(nvml, handle, tags),
    ]


def _slow(nvml: Any, handle: Any, tags: Mapping[str, TagValue]) -> list[Query]:
    volatile = nvml.NVML_VOLATILE_ECC  # since the driver was loaded
    ecc = nvml.nvmlDeviceGetTotalEccErrors
    return [
        _one(
            Gauge("clock", "Hz", {**tags, "domain": "memory"}),
            lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1_000_000,
        ),
        _one(Gauge("utilisation", "1", tags), lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        _one(Gauge("memory_used", "B", tags), lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
        _one(
            Gauge("ecc_corrected", "1", tags),
            lambda: ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, volatile),
        ),
        _one(
            Gauge("ecc_uncorrected", "1", tags),
            lambda: ecc(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, volatile),
        ),
    ]


def _one(gauge: Gauge, ask: Callable[[], float]) -> Query:
    return lambda: [(gauge, ask())]


def _throttling(nvml: Any, handle: Any, tags: Mapping[str, TagValue]) -> Query:
    gauges = [(Gauge("throttled", "1", {**tags, "reason": name}), bit) for name, bit in THROTTLE_REASONS.items()]
    ask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons  # the newer name of the same call is unknown to older drivers

    def query() -> list[Reading]:
        bits = ask(handle)
        return [(gauge, 1 if bits & bit else 0) for gauge, bit in gauges]

    return query


class _Events:
    """XID errors since the start, those about memory (tag `kind`) apart from others: how many, and the newest's number.

    0 means none yet. They are told apart here because a reading may take several, of which the newest is told alone.
    """

    def __init__(self, nvml: Any, devices: list[tuple[Any, dict[str, TagValue]]]) -> None:
        self._nvml = nvml
        self.gauges: dict[tuple[int, str], tuple[Gauge, Gauge]] = {}
        self._counts: dict[tuple[int, str], tuple[int, int]] = {}
        try:
            self._set = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return
        for handle, tags in devices:
            try:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._set)
            except nvml.NVMLError:
                continue
            for kind in ("memory", "other"):
                known = {**tags, "kind": kind}
                self.gauges[_identity(handle), kind] = (Gauge("xid_events", "1", known), Gauge("xid_last", "1", known))
                self._counts[_identity(handle), kind] = (0, 0)

    def read(self) -> list[Reading]:
        """Every device's gauges, after taking the events that have come."""
        for _ in range(_MOST_EVENTS):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._set, 0)
            except self._nvml.NVMLError_Timeout:
                break
            number = int(event.eventData)
            key = _identity(event.device), "memory" if number in _MEMORY_XIDS else "other"
            if key in self._counts:
                self._counts[key] = (self._counts[key][0] + 1, number)
        return [
            reading
            for key, (events, last) in self.gauges.items()
            for reading in ((events, self._counts[key][0]), (last, self._counts[key][1]))
        ]


def _identity(handle: Any) -> int:
    # NVML gives one address to one device; ctypes wraps it anew at every call.
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
