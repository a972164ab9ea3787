"""How many accelerators a process of this host may use, as far as that shows without torch; or, on demand, with it."""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from assay import machine
from assay.preflight.facts import Devices

TORCH_SECONDS = 60.0  # importing torch from a slow network file system
_ENTRY = re.compile(r"[\w./:-]+")
# Variables by which Slurm, a site or a user leaves some of a host's devices to a process.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK",
    "ASCEND_RT_VISIBLE_DEVICES", "MLU_VISIBLE_DEVICES", "MUSA_VISIBLE_DEVICES", "HABANA_VISIBLE_DEVICES",
)  # fmt: skip
_HIDE_ALL = {"", "nodevfiles", "none", "void"}  # NoDevFiles is what Slurm writes where no device was asked for
# The first kind that is there counts: an NVIDIA host may have a display's render node besides.
_FILES = (
    ("/dev/nvidia*", re.compile(r"nvidia\d+")),
    ("/dev/davinci*", re.compile(r"davinci\d+")),
    ("/dev/accel/*", re.compile(r"accel/accel\d+")),
    ("/dev/dri/renderD*", re.compile(r"dri/renderD\d+")),
)


def count(
    env: Mapping[str, str], root: Path = Path("/"), on_bus: Callable[[], Sequence[str]] = machine.accelerators
) -> Devices:
    """Devices by the variables that leave some of them visible, else by the drivers' device files below `root`.

    on_bus: what PCI shows; it says why nothing can be counted, but is no count: displays are there too.
    """
    files, pattern = _files(root)
    named = {name: number for name in VARIABLES if (number := visible(env.get(name))) is not None}
    if named:
        # Some work on top of each other (HIP on ROCR), so the least is what is left.
        name = min(named, key=lambda key: named[key])
        number = named[name]
        if number and not files:
            return Devices(number, name, f"{name} names {number}, but no driver's device file is in /dev")
        if files < number:
            return Devices(files, pattern, f"{name} names {number}, but {pattern} are {files}")
        return Devices(number, name)
    if files:
        return Devices(files, pattern)
    cards = on_bus()
    seen = f"PCI shows {', '.join(cards[:4])}, but without a device file" if cards else "no device file, nothing on PCI"
    return Devices(None, f"{seen}, and none of {', '.join(VARIABLES[:3])} … is set")


def visible(value: str | None) -> int | None:
    """How many devices such a variable leaves; None if it is not set or leaves all of them."""
    if value is None or value.strip().lower() == "all":
        return None
    if value.strip().lower() in _HIDE_ALL:
        return 0
    found: list[str] = []
    for word in value.split(","):
        # CUDA stops at the first entry that names no device, which -1 is made for.
        if not _ENTRY.fullmatch(word.strip()) or word.strip().startswith("-"):
            break
        found.append(word.strip())
    return len(dict.fromkeys(found))


def ask_torch(python: str, env: Mapping[str, str]) -> Devices:
    """torch's own count, by a process of its own. Takes as long as importing torch."""
    code = "import torch; print(torch.accelerator.device_count())"
    try:
        done = subprocess.run(
            [python, "-c", code], env=dict(env), capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Devices(None, f"torch did not answer within {TORCH_SECONDS:g} s")
    words = done.stdout.split()
    if done.returncode or not words or not words[-1].isdigit():
        last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        return Devices(None, f"torch did not answer: {last[:300]}")
    return Devices(int(words[-1]), "torch")


def _files(root: Path) -> tuple[int, str]:
    dev = root / "dev"
    for shown, pattern in _FILES:
        paths = dev.glob(shown.removeprefix("/dev/"))
        found = sum(pattern.fullmatch(str(path.relative_to(dev))) is not None for path in paths)
        if found:
            return found, shown
    return 0, ""
