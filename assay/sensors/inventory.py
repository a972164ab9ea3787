"""Which sensors this host has, and why it does not have the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assay.sensors.hwmon import open_hwmon
from assay.sensors.links import open_links
from assay.sensors.nvml import open_nvml
from assay.sensors.powercap import open_powercap
from assay.sensors.processor import open_processor, open_time
from assay.sensors.quota import open_quota
from assay.sensors.source import Source
from assay.sensors.tool import open_tool

POWER = ("nvml", "rapl", "hwmon", "tool")
"""The sources that may know power or energy."""


@dataclass(frozen=True)
class Inventory:
    """The open `sources`, and for each that is not there the reason (`absent`)."""

    sources: list[Source]
    absent: Mapping[str, str]

    def why_no_power(self) -> str:
        """One sentence that names what was looked for."""
        looked = (f"{name}: {self.absent.get(name, 'tells neither power nor energy')}" for name in POWER)
        return f"no power sensor ({'; '.join(looked)})"


def open_sources(root: Path, env: Mapping[str, str]) -> Inventory:
    """Open every source of this host. `root`: where /sys and /proc are looked for; `env`: the ranks' environment."""
    sources: list[Source] = []
    absent: dict[str, str] = {}
    nvml = open_nvml(env)
    if isinstance(nvml, str):
        absent["nvml"] = nvml
    else:
        sources += nvml
    opened: dict[str, Source | str] = {
        "rapl": open_powercap(root),
        "hwmon": open_hwmon(root, env),
        "time": open_time(root),
        "quota": open_quota(root),
        "processor": open_processor(root),
        "links": open_links(root),
        "tool": open_tool(env),
    }
    for name, found in opened.items():
        if isinstance(found, str):
            absent[name] = found
        else:
            sources.append(found)
    return Inventory(sources, absent)
