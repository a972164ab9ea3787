"""The list of hosts that a scheduler should leave out."""

import contextlib
import os
import platform
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from assay.errors import RunFailed


def scheduler_name() -> str:
    """What the scheduler calls this host: Slurm says so itself; else the host name without its domain."""
    return os.environ.get("SLURMD_NODENAME") or platform.node().partition(".")[0]


def exclusion(hosts: Sequence[str]) -> str:
    """The text of the list: hosts with commas between, for `sbatch --exclude=`; empty for none."""
    return f"{','.join(hosts)}\n" if hosts else ""


def clear(path: Path) -> str:
    """Remove the list of an earlier run; why none can be written there, so that it is known now and not at the end, or "".

    What is there and is no regular file is refused: a device or a link must not be removed, and opening a pipe may block.
    """
    try:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            return f"--exclude-file {path}: is no regular file (but a folder, link, device or pipe); give another"
        with tempfile.TemporaryFile(dir=path.parent):
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"--exclude-file {path}: cannot be written ({_reason(error)}); give another"
    return ""


def exclude(path: Path | None, hosts: Sequence[str]) -> str:
    """Write the list, if there is a place for it; what happened, in a sentence without its full stop.

    The place holds all of the list or none: half a name would exclude another host. Raises RunFailed, with the list, if
    it cannot be written.
    """
    listed = ",".join(hosts) or "nobody"
    if path is None:
        return f"to exclude: {listed}; --exclude-file FILE writes it for sbatch"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(exclusion(hosts))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunFailed(
            f"{path}: cannot be written ({_reason(error)}); to exclude: {listed}; all else was measured and told"
        ) from None
    if not hosts:
        return f"to exclude: {listed}; {path} is empty"
    return f"to exclude: {listed}; sbatch --exclude=$(cat {path})"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
