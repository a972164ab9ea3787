"""The host's processors: clocks, temperatures, throttling by heat, and where their time went.

Clocks are read of at most 8 processors, spread evenly: on a machine with 256 of them all the files would cost more than
the answer is worth. Tag `of` says how many there are.
"""

import os
import re
from pathlib import Path

from assay.record import Tags
from assay.sensors.source import Files, Gauge, Reading, number_of, text_of

MOST_CLOCKS = 8
_ZONE = re.compile(r"x86_pkg_temp|cpu.*", re.IGNORECASE)


def open_processor(root: Path) -> Files | str:
    """Clocks (Hz), temperatures (degC) and throttle counters below `root`, or why there are none."""
    source = Files("processor")
    _add_clocks(source, root / "sys/devices/system/cpu/cpufreq")
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"), key=_number):
        kind = text_of(zone / "type")
        if _ZONE.fullmatch(kind):
            tags = {"device": f"{kind}:{_number(zone)}"}
            source.add(zone / "temp", Gauge("temperature", "degC", tags), divide=1000)
    _add_throttling(source, root / "sys/devices/system/cpu")
    if len(source):
        return source
    return f"no cpufreq, no processor's thermal zone and no throttle counter in {root / 'sys'}"


def _number(path: Path) -> int:
    digits = re.search(r"\d+$", path.name)
    return int(digits[0]) if digits else 0


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 … count − 1, evenly apart."""
    return [index * count // min(count, most) for index in range(min(count, most))]


def _add_clocks(source: Files, folder: Path) -> None:
    # One policy is one clock; on most machines each processor has its own.
    policies = sorted(folder.glob("policy*"), key=_number)
    for index in spread(len(policies), MOST_CLOCKS):
        policy = policies[index]
        tags: Tags = {"device": "cpu", "domain": "core", "cpu": _number(policy), "of": len(policies)}
        source.add(policy / "scaling_cur_freq", Gauge("clock", "Hz", tags), multiply=1000)


def _add_throttling(source: Files, folder: Path) -> None:
    # Every processor of a package shows the package's counters; one of them is enough.
    seen = set()
    for cpu in sorted(folder.glob("cpu[0-9]*"), key=_number):
        package = number_of(cpu / "topology/physical_package_id")
        if package in seen or not (cpu / "thermal_throttle").is_dir():
            continue
        seen.add(package)
        tags = {"device": f"package-{package}"}
        counts = cpu / "thermal_throttle"
        source.add(counts / "package_throttle_count", Gauge("throttle_events", "1", tags))
        source.add(counts / "package_throttle_total_time_ms", Gauge("throttle_time", "s", tags), divide=1000)


class Time:
    """A source: seconds that all processors together were busy, and that a hypervisor kept from them (/proc/stat)."""

    name = "time"
    period = 0.0

    def __init__(self, descriptor: int, ticks: int, cores: int) -> None:
        self.about: dict[str, dict[str, str]] = {}
        self._descriptor = descriptor
        self._ticks = ticks
        tags: Tags = {"device": "cpu", "cores": cores}
        self._busy, self._steal = Gauge("cpu_busy", "s", tags), Gauge("cpu_steal", "s", tags)

    def read(self) -> list[Reading]:
        """Both counters."""
        try:
            first = os.pread(self._descriptor, 512, 0).split(b"\n", 1)[0]
            # user, nice, system, idle, iowait, irq, softirq, steal; a guest's time is in user already
            fields = [int(word) for word in first.split()[1:9]]
            user, nice, system, _, _, irq, softirq, steal = fields
        except (OSError, ValueError):
            return [(self._busy, None), (self._steal, None)]
        return [
            (self._busy, (user + nice + system + irq + softirq) / self._ticks),
            (self._steal, steal / self._ticks),
        ]

    def notes(self) -> list[str]:
        """Nothing to say."""
        return []

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def open_time(root: Path) -> Time | str:
    """The processors' time counters below `root`, or why they cannot be read."""
    path = root / "proc/stat"
    cores = sum(re.match(r"cpu\d", line) is not None for line in text_of(path).splitlines())
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return f"{path}: {(error.strerror or str(error)).lower()}"
    source = Time(descriptor, os.sysconf("SC_CLK_TCK"), cores)
    if source.read()[0][1] is None:
        source.close()
        return f"{path}: does not begin with the processors' times"
    return source
