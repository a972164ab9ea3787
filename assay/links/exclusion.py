"""The list of hosts that a scheduler should leave out."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from assay.errors import BadInput


def scheduler_name() -> str:
    """What the scheduler calls this host: Slurm says so itself; else the host name without its domain."""
    return os.environ.get("SLURMD_NODENAME") or platform.node().partition(".")[0]


def exclusion(hosts: Sequence[str]) -> str:
    """The text of the list: hosts with commas between, for `sbatch --exclude=`; empty for none."""
    return f"{','.join(hosts)}\n" if hosts else ""


def clear(path: Path) -> None:
    """Remove the list of an earlier run. Raises BadInput now, and not at the end, if none can be written there."""
    try:
        path.open("a").close()
        path.unlink()
    except OSError as error:
        raise BadInput(
            f"--exclude-file {path}: cannot be written ({(error.strerror or str(error)).lower()}); give another"
        ) from None


def exclude(path: Path | None, hosts: Sequence[str]) -> str:
    """Write the list, if there is a place for it; what happened, in a sentence without its full stop."""
    listed = ",".join(hosts) or "nobody"
    if path is None:
        return f"to exclude: {listed}; --exclude-file FILE writes it for sbatch"
    path.write_text(exclusion(hosts))
    if not hosts:
        return f"to exclude: {listed}; {path} is empty"
    return f"to exclude: {listed}; sbatch --exclude=$(cat {path})"
