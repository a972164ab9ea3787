"""Which launcher a suite's settings mean in this environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.errors import BadInput
from assay.launchers.local import LocalLauncher
from assay.launchers.mpi import MpiLauncher, check_mpirun, own_first, read_hostfile
from assay.launchers.protocol import Launcher
from assay.launchers.slurm import Allocation, SlurmLauncher, address_of, allocation, check_srun
from assay.suite_format import Launch

_ONLY = {
    "spawn": ("--spawn", "slurm"),
    "jobs": ("--one-job", "slurm"),
    "sbatch": ("--sbatch", "slurm"),
    "hostfile": ("--hostfile", "mpi"),
}  # fmt: skip
FIRST_HOST = "FIRST-HOST"  # in plans: known only when Slurm has given hosts


def launch_keys(file: Mapping[str, Any], given: Mapping[str, object], env: Mapping[str, str]) -> dict[str, object]:
    """How a suite is launched: what the command line gave, else what the suite says, else what Slurm's job tells.

    The number of hosts is the job's or the hostfile's, whatever the suite says. Raises BadInput if more are asked for, or
    if the ranks on each stay unknown.
    """
    launcher = given.get("launcher", file.get("launcher", "local"))
    for key, (flag, wanted) in _ONLY.items():
        if key in given and launcher != wanted:
            raise BadInput(f"{flag}: is for --launcher {wanted}, and this is {launcher}; give --launcher {wanted} too")
    found: dict[str, object] = {}
    here = allocation(env) if launcher in ("slurm", "mpi") else None
    hostfile = given.get("hostfile", file.get("hostfile")) if launcher == "mpi" else None
    if isinstance(hostfile, str):
        found["nodes"] = len(read_hostfile(Path(hostfile)))
    elif here is not None:
        found["nodes"] = len(here.hosts)
    elif launcher == "mpi":
        found["nodes"] = 1
    if here is not None and here.gpus:
        found["per_node"] = file.get("per_node", here.gpus)
    _check_hosts(given.get("nodes"), 1 if launcher == "local" else found.get("nodes"), launcher)
    keys = {**found, **given}
    if launcher == "slurm" and "per_node" not in keys and "per_node" not in file:
        raise BadInput("--launcher slurm: say how many ranks a host takes, one for each of its accelerators: -n 8")
    return keys


def _check_hosts(asked: object, known: object, launcher: object) -> None:
    if isinstance(asked, int) and isinstance(known, int) and asked > known:
        fix = {"local": "give --launcher slurm or mpi", "mpi": "name them with --hostfile"}
        raise BadInput(
            f"-N {asked}: the {launcher} launcher has {known} here; {fix.get(str(launcher), 'ask for more with sbatch -N')}"
        )


def choose_launcher(file: Launch, env: Mapping[str, str]) -> Launcher:
    """The launcher that starts ranks from where this process is.

    Raises BadInput if what it needs is not here.
    """
    if file.launcher == "local":
        return LocalLauncher()
    given = allocation(env)
    if file.launcher == "mpi":
        check_mpirun()
        return _mpi(file, given)
    check_srun()
    if given is None:
        raise BadInput("--launcher slurm: this is no Slurm job; SLURM_JOB_ID or SLURM_JOB_NODELIST is not set")
    return SlurmLauncher(given, file.spawn, address_of(given.hosts[0]))


def launcher_on_paper(file: Launch, env: Mapping[str, str]) -> Launcher:
    """The launcher whose commands a plan prints; nothing needs to be installed. Raises BadInput for a bad hostfile."""
    if file.launcher == "local":
        return LocalLauncher()
    given = allocation(env)
    if file.launcher == "mpi":
        return _mpi(file, given)
    return SlurmLauncher(given or Allocation("JOB", (FIRST_HOST,)), file.spawn)


def _mpi(file: Launch, given: Allocation | None) -> MpiLauncher:
    hosts = read_hostfile(file.hostfile) if file.hostfile is not None else list(given.hosts) if given else []
    return MpiLauncher(own_first(hosts), file.hostfile)


def runs_in_jobs(file: Launch, env: Mapping[str, str]) -> bool:
    """Whether the suite is for Slurm but this process is in no Slurm job: then the cases go into jobs of their own."""
    return file.launcher == "slurm" and allocation(env) is None
