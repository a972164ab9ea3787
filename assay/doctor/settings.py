"""Checks of what was set for this process: limits, variables that mislead, where it runs, free disk."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from assay.doctor.cgroup import processes_left
from assay.doctor.finding import Finding, State
from assay.doctor.host import Host, allowed_cores, is_virtual, whole
from assay.units import format_si

# 1,024 is what most systems give. A rank holds some sockets per peer and per channel, so that carries about a hundred
# ranks; with less than a quarter of it a few ranks and their data loaders already run out.
FILES_WARN, FILES_BAD = 1024, 256
# Threads count as processes here. A rank with torch starts two for every core and some for its backend.
PROCESSES_WARN, PROCESSES_BAD = 4096, 512
# A long suite records some tens of MB; cases that write checkpoints need the size of a model several times over.
DISK_WARN, DISK_BAD = 5 << 30, 256 << 20


def open_files(host: Host) -> Finding:
    """How many files and sockets a rank may hold."""
    soft = _soft_limit(host, "Max open files")
    if soft is None:
        return Finding("open files", "unknown", "no such limit in /proc/self/limits")
    return _enough("open files", soft, FILES_WARN, FILES_BAD, "ulimit -n 65536")


def processes(host: Host) -> Finding:
    """How many processes and threads may be started, by the user's limit and the control group's."""
    soft, left = _soft_limit(host, "Max processes"), processes_left(host)
    if soft is None and left is None:
        return Finding("processes", "unknown", "no such limit in /proc/self/limits")
    most = min(limit for limit in (soft, left) if limit is not None)
    advice = "ulimit -u 65536" if most == soft else "raise the container's limit (docker --pids-limit)"
    return _enough("processes", most, PROCESSES_WARN, PROCESSES_BAD, advice)


def locked_memory(host: Host) -> Finding:
    """Memory that may not be swapped: network cards that read it themselves need it without limit."""
    soft = _soft_limit(host, "Max locked memory")
    if soft is None:
        return Finding("locked memory", "unknown", "no such limit in /proc/self/limits")
    found = "unlimited" if soft == _UNLIMITED else format_si(soft, "B")
    cards = host.below("sys/class/infiniband/*")
    if soft == _UNLIMITED or not cards:
        return Finding("locked memory", "good", found if cards else f"{found}, no RDMA card here")
    names = ", ".join(card.rpartition("/")[2] for card in cards[:4])
    return Finding(
        "locked memory",
        "warn",
        f"{found}: the RDMA cards ({names}) cannot register more, and transfers fail or take the slow way",
        "ulimit -l unlimited (docker --ulimit memlock=-1)",
    )


def core_files(host: Host) -> Finding:
    """Whether a crash writes a rank's memory to disk while others are measured. Told only: it needs a crash."""
    soft = _soft_limit(host, "Max core file size")
    if soft is None:
        return Finding("core files", "unknown", "no such limit in /proc/self/limits")
    size = "of any size" if soft == _UNLIMITED else f"of up to {format_si(soft, 'B')}"
    return Finding("core files", "good", f"a rank that crashes writes one {size}" if soft else "off")


_UNLIMITED = 1 << 63


def _soft_limit(host: Host, name: str) -> int | None:
    for line in (host.text("proc/self/limits") or "").splitlines():
        if line.startswith(name):
            word = next(iter(line.removeprefix(name).split()), "")
            return _UNLIMITED if word == "unlimited" else whole(word)
    return None


def _enough(check: str, count: int, warn: int, bad: int, advice: str) -> Finding:
    state: State = "bad" if count < bad else "warn" if count < warn else "good"
    found = "unlimited" if count == _UNLIMITED else f"{count:,} allowed"
    return Finding(check, state, found, "" if state == "good" else advice)


_BLAS_THREADS = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_BINDINGS = ("OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")


def threads(host: Host) -> Finding:
    """Variables that give ranks more or fewer threads than their share of the cores."""
    allowed = allowed_cores(host)
    if allowed is None:
        return Finding("threads", "unknown", "the kernel does not tell how many cores are allowed")
    cores, text = len(allowed), host.env.get("OMP_NUM_THREADS", "")
    wanted = whole(text.partition(",")[0])
    said: list[str] = []
    if text and (wanted is None or wanted < 1):
        said.append(f"OMP_NUM_THREADS={text} is no number of threads")
    elif wanted is not None and wanted > cores:
        said.append(f"OMP_NUM_THREADS={wanted} on {cores} cores: threads take turns")
    elif wanted == 1 and cores > 1:
        said.append(f"OMP_NUM_THREADS=1: every rank computes on 1 of {cores} cores, also where it is alone")
    for name in _BLAS_THREADS:
        if host.env.get(name) and host.env[name] != text:
            said.append(f"{name}={host.env[name]}: matrix products do not follow OMP_NUM_THREADS")
    for name in _BINDINGS:
        if host.env.get(name, "").lower() not in ("", "false", "none", "disabled"):
            said.append(f"{name}={host.env[name]}: may bind all ranks to the same cores")
    if said:
        return Finding("threads", "warn", "; ".join(said), "unset what is not meant: assay shares the cores out itself")
    return Finding("threads", "good", f"{wanted} a rank, as set" if wanted else "cores are shared out among ranks")


def _is_on(value: str) -> bool:
    return value.lower() not in ("", "0", "false", "off", "no")


# Settings for finding faults that are easily left behind: when they matter, and what they do.
_SLOWING: dict[str, tuple[Callable[[str], bool], str]] = {
    "CUDA_LAUNCH_BLOCKING": (_is_on, "every kernel waits for the one before"),
    "ASCEND_LAUNCH_BLOCKING": (_is_on, "every kernel waits for the one before"),
    "HIP_LAUNCH_BLOCKING": (_is_on, "every kernel waits for the one before"),
    "AMD_SERIALIZE_KERNEL": (_is_on, "every kernel waits for the one before"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (_is_on, "every tensor is allocated anew"),
    "TORCH_DISTRIBUTED_DEBUG": (lambda value: value.upper() == "DETAIL", "every collective is checked first"),
    "NCCL_DEBUG": (lambda value: value.upper() == "TRACE", "every call is logged"),
    "NCCL_P2P_DISABLE": (_is_on, "devices do not reach each other directly"),
    "NCCL_SHM_DISABLE": (_is_on, "ranks of a host talk through the network"),
    "NCCL_IB_DISABLE": (_is_on, "RDMA is off"),
    "PYTHONDEVMODE": (_is_on, "Python checks itself"),
    "MALLOC_CHECK_": (_is_on, "the allocator checks itself"),
    "LD_PRELOAD": (lambda value: "asan" in value or "tsan" in value, "a sanitizer is loaded"),
}


def debugging(host: Host) -> Finding:
    """Variables for finding faults that slow down what is measured."""
    said = [f"{name}={host.env[name]}: {why}" for name, (on, why) in _SLOWING.items() if on(host.env.get(name, ""))]
    if said:
        return Finding("debug settings", "warn", "; ".join(said), "unset them, unless they are what is measured")
    return Finding("debug settings", "good", "none that slow things down")


def disk(host: Host, out: Path | None) -> Finding:
    """Room where the run goes (the working folder without a path), and whether it can be written."""
    folder = (out or Path()).absolute()
    while not os.access(folder, os.F_OK) and folder != folder.parent:
        folder = folder.parent
    try:
        # Rights say too little: of a read-only disk, a quota, a network file system that does not trust root.
        with tempfile.TemporaryFile(dir=folder):
            space = host.space(folder)
    except OSError as error:
        found = f"{folder} cannot be written: {(error.strerror or str(error)).lower()}"
        return Finding("disk", "bad", found, "give another --out")
    state: State = "bad" if space.free < DISK_BAD else "warn" if space.free < DISK_WARN else "good"
    found = f"{format_si(space.free, 'B')} free for {folder}"
    return Finding("disk", state, found, "" if state == "good" else "make room, or give an --out elsewhere")


def surroundings(host: Host) -> Finding:
    """Whether this is a virtual machine or a container. Told only: other checks show what it does."""
    product = " ".join(
        word for name in ("sys_vendor", "product_name") if (word := host.text(f"sys/class/dmi/id/{name}"))
    )
    hypervisor = host.text("sys/hypervisor/type") or product
    virtual = is_virtual(host) or bool(host.text("sys/hypervisor/type"))
    machine = (
        f"virtual machine{f' ({hypervisor})' if hypervisor else ''}" if virtual else product or "no hypervisor seen"
    )
    kind = _container(host)
    return Finding("surroundings", "good", f"{machine}, {kind}")


def _container(host: Host) -> str:
    for mark, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman"), (".singularity.d", "apptainer")):
        if (host.root / mark).exists():
            return f"in a container ({name})"
    for word in ("kubepods", "docker", "libpod", "lxc"):
        if word in (host.text("proc/self/cgroup") or ""):
            return f"in a container ({word})"
    return "no container seen"
