"""Where a launcher put this process: the variables of torchrun, Slurm, Open MPI and MPICH. Pure functions."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from assay.errors import BadInput
from assay.layout import counts_per_node


@dataclass(frozen=True)
class Placement:
    """Where a launcher put this process. `launcher` names the variables that were believed."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    launcher: str


_LAUNCHERS = (
    # launcher, rank, world, local rank, local world; the innermost launcher comes first
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    (
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


_OF_RANKS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?RANK|ROLE_NAME|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_\w+|OMPI_COMM_WORLD_\w+|PMI_(RANK|SIZE)|ASSAY_(LIFELINE|BEACONS)"
)


def tells_of_a_rank(name: str) -> bool:
    """Whether a variable says which rank of which world a process is; whoever starts ranks gives them their own."""
    return _OF_RANKS.fullmatch(name) is not None


def placement(env: Mapping[str, str]) -> Placement:
    """This process's place by its launcher's variables; rank 0 of 1 without any.

    Raises BadInput if a variable is no number, the place is impossible, or two launchers tell two places.
    """
    in_step = "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env
    _check_one_launcher(env, in_step)
    for launcher, rank, world, local_rank, local_world in _LAUNCHERS:
        if rank not in env or world not in env:
            continue
        if local_rank in env and local_world in env:
            return _checked(launcher, env, rank, world, local_rank, local_world)
        # srun --mpi=pmi2 sets PMI_RANK without a local rank, which Slurm itself then knows.
        if launcher != "torchrun" and in_step:
            continue
        if launcher != "torchrun":
            raise BadInput(f"environment: {launcher} set {rank} but not {local_rank}; set it to the rank on this host")
        # DeepSpeed's launcher tells the local pair by another name. By hand, without it: all are on this host.
        local_world = "LOCAL_SIZE" if "LOCAL_SIZE" in env else world
        return _checked(launcher, env, rank, world, local_rank if local_rank in env else rank, local_world)
    # In a batch script SLURM_PROCID is set too, but no rank was started: only a step has a number of tasks.
    if in_step:
        place = _checked("Slurm", env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None)
        return Placement(place.rank, place.world, place.local_rank, _slurm_local_world(env), "Slurm")
    return Placement(0, 1, 0, 1, "none")


def _check_one_launcher(env: Mapping[str, str], in_step: bool) -> None:
    """torchrun's own ranks have its mark, and may well run below another launcher. RANK without it was set by hand."""
    if "TORCHELASTIC_RUN_ID" in env or "RANK" not in env or "WORLD_SIZE" not in env:
        return
    by_hand = (env["RANK"], env["WORLD_SIZE"])
    if not all(text.isascii() and text.isdigit() for text in by_hand):
        return  # the checks of the place itself say so
    others = {"Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")}
    if in_step:
        others["Slurm"] = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    for launcher, (rank, world) in others.items():
        told = (env.get(rank, ""), env.get(world, ""))
        if not all(text.isascii() and text.isdigit() for text in told) or told == by_hand or told[1] == "1":
            continue
        # More ranks than processes: a launcher of its own (deepspeed, accelerate) started them below each process.
        if int(by_hand[1]) <= int(told[1]):
            raise BadInput(
                f"environment: RANK={by_hand[0]} of WORLD_SIZE={by_hand[1]}, but {launcher} started this process as "
                f"{rank}={told[0]} of {world}={told[1]}; unset RANK and WORLD_SIZE, or start with one launcher"
            )


def _checked(
    launcher: str, env: Mapping[str, str], rank: str, world: str, local_rank: str, local_world: str | None
) -> Placement:
    numbers: list[int] = []
    for name in (rank, world, local_rank, local_world or world):
        text = env.get(name, "")
        if not (text.isascii() and text.isdigit()):
            raise BadInput(
                f"environment: {name}={text!r} should be a whole number; was it set by {launcher} or by hand?"
            )
        numbers.append(int(text))
    place = Placement(numbers[0], numbers[1], numbers[2], numbers[3], launcher)
    if not (place.rank < place.world and place.local_rank < place.local_world <= place.world):
        raise BadInput(f"environment: {rank}={place.rank} does not fit {world}={place.world}; start the ranks anew")
    return place


def _slurm_local_world(env: Mapping[str, str]) -> int:
    # SLURM_STEP_TASKS_PER_NODE: "2(x3),1" = 2, 2, 2, 1 tasks on the nodes in order.
    counts = counts_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = env.get("SLURM_NODEID", "0")
    index = int(node) if node.isdigit() else 0
    return counts[index] if index < len(counts) else int(env["SLURM_STEP_NUM_TASKS"])


def rendezvous_environment(place: Placement, env: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for torch's env:// rendezvous, where the launcher left them out.

    Raises BadInput if the first host's address cannot be known.
    """
    given = {"RANK": str(place.rank), "WORLD_SIZE": str(place.world), "LOCAL_RANK": str(place.local_rank)}
    if "MASTER_ADDR" in env:
        given["MASTER_ADDR"] = env["MASTER_ADDR"]
    elif place.local_world == place.world:
        given["MASTER_ADDR"] = "127.0.0.1"
    elif first_host(env.get("SLURM_STEP_NODELIST", "")):
        given["MASTER_ADDR"] = first_host(env["SLURM_STEP_NODELIST"])
    else:
        raise BadInput(
            f"environment: {place.launcher} started several hosts but MASTER_ADDR is not set; set it to rank 0's host"
        )
    # Ranks of one job must agree on a port without talking; the job's own name is what they share.
    job = env.get("SLURM_JOB_ID") or env.get("PMIX_NAMESPACE") or env.get("PMI_JOBID") or ""
    given["MASTER_PORT"] = env.get("MASTER_PORT") or str(20000 + zlib.crc32(job.encode()) % 10000)
    return given


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: `node[03-07,9],x1` → `node03`; empty for an empty list."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?", nodelist)
    return match[1] + (match[2] or "") if match else ""
