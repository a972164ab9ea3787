"""RAPL: the energy counters of processor packages, by the kernel's powercap files.

A package's counter stands in a top-level zone, those of its parts (cores, DRAM) in zones below it. Tag `part` tells
them apart, because adding a part to its package may count it twice: `package`, `subzone`, and `platform` for a zone
that holds packages itself (psys).
"""

import re
from pathlib import Path

from assay.sensors.source import Files, Gauge, number_of, text_of

_PACKAGE = re.compile(r"package-\d+")


def open_powercap(root: Path) -> Files | str:
    """The energy counters below `root`/sys/class/powercap, or why there are none."""
    folder = root / "sys/class/powercap"
    zones = sorted(folder.glob("intel-rapl*:*"))  # AMD's counters come under the same name
    if not zones:
        return f"no RAPL zone in {folder}"
    # Some machines show a package twice, by register and by memory-mapped file: it is one and the same counter.
    if any(zone.name.startswith("intel-rapl:") for zone in zones):
        zones = [zone for zone in zones if zone.name.startswith("intel-rapl:")]
    source = Files("rapl")
    refusals = []
    for zone in zones:
        top, _, below = zone.name.partition(":")[2].partition(":")
        name = text_of(zone / "name") or zone.name
        if below:
            part, parent = "subzone", zone.with_name(zone.name.rpartition(":")[0])
            device = f"{text_of(parent / 'name') or top}/{name}"
        else:
            part, device = "package" if _PACKAGE.match(name) else "platform", name
        gauge = Gauge("energy", "J", {"device": device, "part": part, "zone": zone.name})
        wraps_at = number_of(zone / "max_energy_range_uj") or 0
        refusal = source.add(zone / "energy_uj", gauge, divide=1_000_000, wraps_at=wraps_at)
        if refusal:
            refusals.append(refusal)
    if len(source):
        return source
    return f"{refusals[0]} (energy counters are root's alone unless the administrator opens them)"
