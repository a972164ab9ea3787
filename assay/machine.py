"""Inventory of the host and its software, without torch: what a reader needs to judge a figure."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

# Settings that change what is measured. Everything else stays private.
_MATTERS = re.compile(
    r"(NCCL|GLOO|UCX|UCC|HCCL|CNCL|MCCL|OMP|GOMP|MKL|KMP|DNNL|ONEDNN|ATEN|OPENBLAS|BLIS|SLURM|OMPI|TORCH|TORCHELASTIC|CUDA|NVIDIA|HIP|HSA|ROCR|GPU|ASCEND|XPU|ZE|ASSAY)_\w+"
    r"|MASTER_(ADDR|PORT)|LD_PRELOAD|LD_LIBRARY_PATH|PYTORCH_\w+"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY$", re.IGNORECASE)

_PACKAGES = (
    "torch", "transformers", "tokenizers", "numpy", "accelerate", "peft", "deepspeed", "mpi4py", "safetensors",
    "pydantic", "typer", "rich", "jinja2", "psutil", "PyYAML",
)  # fmt: skip


def host() -> dict[str, Any]:
    """Processor, memory (B), operating system and compiler of this host; unknown values are None."""
    return {
        "name": platform.node(),
        "cpu": cpu_model(),
        "cores_logical": psutil.cpu_count(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_usable": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": _os_name(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "gcc": _first_line(["gcc", "--version"]),
        "load_1min": os.getloadavg()[0],
    }


def software() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter, from their metadata; None where not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of `env` that change what is measured; values that look secret are withheld."""
    kept = {key: value for key, value in sorted(env.items()) if _MATTERS.fullmatch(key)}
    return {key: "(withheld)" if _SECRET.search(key) else value for key, value in kept.items()}


def code() -> dict[str, str | None]:
    """Where the running suite lies, its git revision, uncommitted diff and untracked files (None outside a checkout)."""
    import assay

    folder = Path(assay.__file__).resolve().parent
    revision = _git(folder, "rev-parse", "HEAD")
    diff = _git(folder, "diff", "HEAD", "--", str(folder.parent)) if revision else None
    untracked = (
        _git(folder, "ls-files", "--others", "--exclude-standard", "--", str(folder.parent)) if revision else None
    )
    about = {"version": assay.__version__, "path": str(folder), "revision": revision, "diff": diff}
    return {**about, "untracked": untracked}


def source_digest() -> str:
    """SHA-256 of this suite's own sources: tells two versions apart in a checkout and in a wheel, committed or not."""
    import assay

    folder = Path(assay.__file__).resolve().parent
    scripts = folder.parent if (folder.parent / "pyproject.toml").exists() else folder
    digest = hashlib.sha256()
    for path in sorted({*folder.rglob("*.py"), *(scripts / "specs").glob("*.py")}):
        digest.update(f"{path.relative_to(scripts)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cpu_model() -> str:
    """The processor's marketing name, or the architecture where the system does not tell it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on (affinity), at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1


def bound_cores() -> list[int]:
    """Numbers of the cores that this process may run on; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def last_level_caches(root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Bytes of all caches of the highest level together, None where the system does not tell. Other guests may share them."""
    found: dict[tuple[int, str], int] = {}
    for folder in root.glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, shared = ((folder / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KM]?)", size)
        if match and level.isdigit():
            found[int(level), shared] = int(match[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[match[2]]
    highest = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == highest) or None


def memory_left(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes that can still be had without swapping, and all there is, within this process's control groups."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for limit, used in _memory_groups(root):
        try:
            allowed, taken = int(limit.read_text()), int(used.read_text())
        except (OSError, ValueError):  # "max", or no such controller
            continue
        free, total = min(free, max(0, allowed - taken)), min(total, allowed)
    return free, total


def _memory_groups(root: Path) -> Iterator[tuple[Path, Path]]:
    # Seen from inside a container, its own group is often the root of what is mounted.
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = base / path.lstrip("/")
        for folder in (own, *(parent for parent in own.parents if parent == base or base in parent.parents)):
            yield folder / names[0], folder / names[1]


def accelerators() -> list[str]:
    """PCI address, vendor:device and driver with its version of every display or accelerator; torch is not asked."""
    found = []
    for folder in sorted(Path("/sys/bus/pci/devices").glob("*")):
        try:
            kind, vendor, product = ((folder / name).read_text().strip() for name in ("class", "vendor", "device"))
        except OSError:
            continue
        if kind.startswith(("0x03", "0x12")):
            found.append(f"{folder.name} {vendor}:{product} {_driver(folder)}")
    return found


def _driver(folder: Path) -> str:
    try:
        name = (folder / "driver").readlink().name
        return f"{name} {Path(f'/sys/module/{name}/version').read_text().strip()}"
    except OSError:
        return "no driver version"


def clock_id() -> str:
    """Names the monotonic clock: equal on two processes if and only if they read the same one.

    That is one boot of one host, and one time namespace of it: a container may have shifted its clock.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/time")
        return f"{boot}/{namespace.readlink()}" if namespace.is_symlink() else boot
    except OSError:
        return f"{platform.node()}/{psutil.boot_time():.0f}"


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str | None:
    # A wheel inside somebody else's checkout must not be taken for that checkout.
    if not (folder.parent / ".git").exists():
        return None
    return _output(["git", "-C", str(folder), *words])


def _first_line(argv: list[str]) -> str | None:
    text = _output(argv)
    return text.splitlines()[0] if text else None


def _output(argv: list[str]) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def node_python(env: Mapping[str, str]) -> str:
    """The interpreter that runs on every host: ASSAY_NODE_PYTHON, as inside of a container, else the one that runs now."""
    return env.get("ASSAY_NODE_PYTHON") or sys.executable


def python() -> str:
    """The interpreter that runs now, for what is started on this host."""
    return sys.executable
