"""Accelerators by their kernel driver's own hwmon files: amdgpu, xe, i915 and whoever else follows the convention.

Units of hwmon: power in µW, energy in µJ, temperature in m°C, frequency in Hz (kernel documentation, hwmon/sysfs-interface).
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from assay.sensors.source import Files, Gauge, text_of

_CARD = re.compile(r"card\d+")  # card0-DP-1 and the like are sockets for screens
_MICRO, _MILLI = 1_000_000, 1_000
# Each hides devices from the ranks or gives them another order.
_CHOOSERS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")


def open_hwmon(root: Path, env: Mapping[str, str]) -> Files | str:
    """The sensors of the cards below `root`/sys/class/drm, or why there are none.

    Tag `index`: which of its driver's cards it is, in the order of their addresses, as ranks count them; it is left out
    where a variable of `env` gives the ranks another choice.
    """
    folder = root / "sys/class/drm"
    cards = [card for card in folder.glob("card*") if _CARD.fullmatch(card.name) and _monitors(card)]
    if not cards:
        return f"no card with sensors in {folder}"
    source = Files("hwmon")
    counted = not any(env.get(name) for name in _CHOOSERS)
    seen: Counter[str] = Counter()
    for card in sorted(cards, key=_address):
        driver = text_of(_monitors(card)[0] / "name")
        tags: dict[str, str | int] = {"device": card.name, "part": "accelerator", "driver": driver}
        if counted:
            tags["index"] = seen[driver]
        seen[driver] += 1
        for monitor in _monitors(card):
            _add(source, monitor, tags)
        source.about[card.name] = {"driver": driver, "address": _address(card)}
    return source if len(source) else f"the cards in {folder} have no sensor that can be read"


def _monitors(card: Path) -> list[Path]:
    return sorted((card / "device/hwmon").glob("hwmon*"))


def _address(card: Path) -> str:
    return Path(os.path.realpath(card / "device")).name


def _add(source: Files, monitor: Path, tags: Mapping[str, str | int]) -> None:
    # amdgpu offers the mean over a moment, the present value, or both; one of them is the card's power.
    for name in ("power1_average", "power1_input"):
        if source.add(monitor / name, Gauge("power", "W", {**tags, "file": name}), divide=_MICRO) is None:
            break
    source.add(monitor / "energy1_input", Gauge("energy", "J", dict(tags)), divide=_MICRO)
    for path in sorted(monitor.glob("temp*_input")):
        where = text_of(path.with_name(path.name.replace("_input", "_label"))) or path.name.removesuffix("_input")
        source.add(path, Gauge("temperature", "degC", {**tags, "sensor": where}), divide=_MILLI)
    for path in sorted(monitor.glob("freq*_input")):
        domain = text_of(path.with_name(path.name.replace("_input", "_label"))) or path.name.removesuffix("_input")
        source.add(path, Gauge("clock", "Hz", {**tags, "domain": domain}))
