"""How long a cgroup's processor quota kept this process's threads waiting (cgroup v1 and v2).

A limit anywhere above the process stops it, so every group upwards that has one is read, and the process's own.
"""

import os
import re
from pathlib import Path

from assay.sensors.source import Gauge, Reading, number_of, text_of

_FIELD = re.compile(rb"^(?:throttled_usec|throttled_time) (\d+)$", re.MULTILINE)


class Quota:
    """A source: seconds in which threads of each group were held back, summed over processors."""

    name = "quota"
    period = 0.0

    def __init__(self, groups: list[tuple[Gauge, int, float]]) -> None:
        self.about: dict[str, dict[str, str]] = {}
        self._groups = groups  # gauge, descriptor of cpu.stat, raw units a second

    def read(self) -> list[Reading]:
        """Seconds of every group."""
        return [(gauge, _throttled(descriptor, per_second)) for gauge, descriptor, per_second in self._groups]

    def notes(self) -> list[str]:
        """Nothing to say."""
        return []

    def close(self) -> None:
        """Close the files."""
        for _, descriptor, _ in self._groups:
            os.close(descriptor)
        self._groups = []


def open_quota(root: Path) -> Quota | str:
    """The groups of this process below `root`, or why they cannot be read."""
    groups = []
    for folder, top, per_second in _own(root):
        for group in (folder, *folder.parents):
            if group == folder or _limited(group):
                try:
                    descriptor = os.open(group / "cpu.stat", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue
                if _throttled(descriptor, per_second) is None:
                    os.close(descriptor)  # a group without the processor's controller counts no waiting
                    continue
                path = "" if group == top else str(group.relative_to(top))
                tags = {"device": "cpu", "cgroup": f"/{path}"}
                groups.append((Gauge("cpu_throttled", "s", tags), descriptor, per_second))
            if group == top:
                break
    return Quota(groups) if groups else f"no group in {root / 'proc/self/cgroup'} counts throttling"


def _own(root: Path) -> list[tuple[Path, Path, float]]:
    """(folder of the process's group, top of that hierarchy, raw units a second) for v1 and v2, as far as there are."""
    found = []
    mounts = root / "sys/fs/cgroup"
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "cpu" in controllers.split(","):
            tops, per_second = [mounts / controllers, mounts / "cpu"], 1e9
        elif not controllers:
            tops, per_second = [mounts, mounts / "unified"], 1e6
        else:
            continue
        for top in tops:
            # A container may see the path of its host, which does not exist here: its own top is then its group.
            folder = next((f for f in (top / path.lstrip("/"), top) if (f / "cpu.stat").exists()), None)
            if folder is not None:
                found.append((folder, top, per_second))
                break
    return found


def _limited(group: Path) -> bool:
    quota = number_of(group / "cpu.cfs_quota_us")
    return (quota is not None and quota > 0) or text_of(group / "cpu.max").split()[:1] not in ([], ["max"])


def _throttled(descriptor: int, per_second: float) -> float | None:
    try:
        match = _FIELD.search(os.pread(descriptor, 4096, 0))
    except OSError:
        return None
    return int(match[1]) / per_second if match else None
