"""The format of a suite file: its keys, what they mean and what may stand in them."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from assay.options import SCRIPTS, Options
from assay.options.base import PathText, nearest

DEFAULT_OPTIONS = ("--exclusive",)  # of a job: what else runs on a host would be measured with it
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


def _plain_name(value: object) -> object:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"expected a name of letters, digits, '.', '_' and '-', got {value!r}")
    return value


def _known_script(value: object) -> object:
    if not isinstance(value, str) or value not in SCRIPTS:
        raise ValueError(f"unknown script {value!r}{nearest(str(value), list(SCRIPTS))}")
    return value


def sbatch_option(value: object) -> str:
    """One option of sbatch. Raises ValueError if it is none, or more than one line."""
    if not isinstance(value, str) or not re.fullmatch(r"--?[a-zA-Z][^\n\r]*", value):
        raise ValueError(f"expected an option of sbatch in one line, such as --partition=gpu, got {value!r}")
    return value


Name = Annotated[str, BeforeValidator(_plain_name)]


class CaseEntry(Options):
    """One entry under `cases:`; a matrix makes several cases of it."""

    name: Name = Field(description="name of the case's folder")
    script: Annotated[str, BeforeValidator(_known_script)] = Field(
        description="which script measures, such as comms/bench"
    )
    world: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        1, description="number of ranks; all: as many as there are, nodes × per_node"
    )
    time_limit: float | None = Field(None, gt=0, description="seconds after which the case is ended")
    reuse_within: float = Field(
        0.0,
        ge=0,
        description="seconds for which records of the same case, machine and code are taken instead; specs only",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the script's own options")
    labels: dict[Name, str | int | float | bool] = Field(
        default_factory=dict,
        description="what else tells this case from others, such as network: 200G; a profile may ask",
    )
    matrix: dict[str, list[Any]] = Field(
        default_factory=dict, description="worlds, or options in the plural: a case for every combination"
    )


class Launch(Options):
    """The keys that say how ranks are started and where."""

    launcher: Literal["local", "slurm", "mpi"] = Field("local", description="what starts the ranks")
    nodes: int | None = Field(None, ge=1, description="number of hosts; a Slurm job knows its own")
    per_node: int | None = Field(None, ge=1, description="ranks on a host; a Slurm job takes one for each of its GPUs")
    spawn: Literal["torchrun", "srun"] = Field(
        "torchrun", description="Slurm: one torchrun a host, or every rank a task of srun's"
    )
    jobs: Literal["case", "suite"] = Field(
        "case", description="Slurm, outside of a job: a job for every case, or one allocation for the suite"
    )
    sbatch: list[Annotated[str, BeforeValidator(sbatch_option)]] = Field(
        default_factory=lambda: list(DEFAULT_OPTIONS), description="Slurm: options of the jobs, such as --partition=gpu"
    )
    hostfile: PathText | None = Field(None, description="MPI: the file that names the hosts, one a line")
    preflight: bool = Field(
        False, description="before the first case: do all hosts answer, agree and reach each other?"
    )
    port: int | None = Field(None, ge=1, le=65535, description="rendezvous port; a free one is chosen without it")


class SuiteFile(Launch):
    """The whole file."""

    assay: Literal[1] = Field(description="version of this format")
    name: Name = Field(description="name of the suite; run folders are called after it")
    description: str = Field("", description="what the suite is for")
    smoke_of: Name | None = Field(
        None, description="the suite of which this is the twin with small sizes; its figures stand for nothing else"
    )
    limits: bool = Field(True, description="measure this machine's ceilings first, for every number of ranks")
    limits_max_age: float = Field(
        86400.0, ge=0, description="seconds for which ceilings of the same machine and code are used again"
    )
    doctor: bool = Field(True, description="look first whether the machine is fit to be measured")
    time_limit: float = Field(600.0, gt=0, description="seconds per case, where the case gives none")
    profile: str | None = Field(None, description="scoring profile; the default one without it")
    cases: list[CaseEntry] = Field(min_length=1, description="what is run, in this order")
