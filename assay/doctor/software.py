"""Check of the versions that everything rests on."""

import platform
import re
from importlib import metadata

from assay.doctor.finding import Finding

OLDEST_TORCH = (2, 6)  # as in pyproject.toml: torch.accelerator, on which assay.device stands, came with it


def torch_version() -> str | None:
    """The installed torch by its metadata, without importing it; None if there is none."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def torch(version: str | None) -> Finding:
    """Whether torch is there and new enough. Whether it works, only the noise run shows."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    if version is None:
        return Finding("torch", "bad", "not installed", f"install torch {oldest} or newer")
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        return Finding("torch", "unknown", f"version {version!r} is not understood")
    if (int(match[1]), int(match[2])) < OLDEST_TORCH:
        return Finding("torch", "bad", f"{version} is too old", f"install torch {oldest} or newer")
    return Finding("torch", "good", f"{version}, Python {platform.python_version()}")
