"""The flags of `assay run`, `plan` and `preflight` that say how ranks are started and where."""

from pathlib import Path
from typing import Annotated

import typer

from assay.errors import BadInput

LauncherOption = Annotated[
    str | None, typer.Option(help="what starts the ranks: local, slurm or mpi [the suite's own, local without]")
]
NodesOption = Annotated[int | None, typer.Option("-N", "--nodes", min=1, help="number of hosts")]
PerNodeOption = Annotated[
    int | None, typer.Option("-n", "--per-node", min=1, help="ranks on each host, one for each of its accelerators")
]
SpawnOption = Annotated[
    str | None, typer.Option(help="Slurm: torchrun (one a host) or srun (every rank is a task) [torchrun]")
]
OneJobOption = Annotated[
    bool, typer.Option("--one-job", help="Slurm: the whole suite in one allocation instead of a job for every case")
]
SbatchOption = Annotated[
    list[str] | None,
    typer.Option(metavar="OPTION", help="Slurm: an option of the jobs, such as --sbatch=--partition=gpu [--exclusive]"),
]
HostfileOption = Annotated[Path | None, typer.Option(help="MPI: the file that names the hosts, one a line")]


def launch_settings(
    launcher: str | None,
    nodes: int | None,
    per_node: int | None,
    spawn: str | None,
    one_job: bool,
    sbatch: list[str] | None,
    hostfile: Path | None,
    preflight: bool,
) -> dict[str, object]:
    """The keys of a suite that the command line gives. Raises BadInput for a word that is none of those known."""
    from assay.options.base import nearest

    for flag, word, known in (
        ("launcher", launcher, ["local", "slurm", "mpi"]),
        ("spawn", spawn, ["torchrun", "srun"]),
    ):
        if word is not None and word not in known:
            raise BadInput(f"--{flag} {word}: unknown{nearest(word, known)}")
    given: dict[str, object] = {"launcher": launcher, "nodes": nodes, "per_node": per_node, "spawn": spawn}
    given |= {"jobs": "suite" if one_job else None, "sbatch": sbatch or None, "preflight": preflight or None}
    given["hostfile"] = str(hostfile.resolve()) if hostfile else None
    return {key: value for key, value in given.items() if value is not None}
