import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from assay.errors import BadInput
from assay.placement import Placement, placement, rendezvous_environment, tells_of_a_rank
from assay.record import read_rank_file
from assay.world import first_of_second_host
from tests.conftest import ROOT, environment, free_port, torchrun, wait_for

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_JOB_ID": "77",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
DEEPSPEED = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "5", "LOCAL_SIZE": "8"}
SRUN_PER_HOST = {
    "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, Placement(0, 1, 0, 1, "none")),
        (TORCHRUN, Placement(5, 8, 1, 4, "torchrun")),
        (SLURM, Placement(3, 5, 1, 2, "Slurm")),
        (OPEN_MPI, Placement(1, 2, 1, 2, "Open MPI")),
        (MPICH, Placement(1, 4, 1, 4, "MPICH")),
        ({**SLURM, **OPEN_MPI}, Placement(1, 2, 1, 2, "Open MPI")),
        ({**SLURM, **TORCHRUN}, Placement(5, 8, 1, 4, "torchrun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Placement(0, 1, 0, 1, "none")),  # a batch script is no step
        ({**SLURM, "PMI_RANK": "3", "PMI_SIZE": "5"}, Placement(3, 5, 1, 2, "Slurm")),  # srun --mpi=pmi2
        ({"RANK": "1", "WORLD_SIZE": "2"}, Placement(1, 2, 1, 2, "torchrun")),
        (
            {**OPEN_MPI, "RANK": "1", "WORLD_SIZE": "2"},
            Placement(1, 2, 1, 2, "torchrun"),
        ),  # a wrapper's, after mpirun's
        # One launcher below another: a task of srun's on each of two hosts.
        ({**SRUN_PER_HOST, **TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}, Placement(5, 8, 1, 4, "torchrun")),
        (
            {
                **SRUN_PER_HOST,
                **TORCHRUN,
                "RANK": "0",
                "WORLD_SIZE": "1",
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "TORCHELASTIC_RUN_ID": "x",
            },
            Placement(0, 1, 0, 1, "torchrun"),
        ),
        ({**SRUN_PER_HOST, **OPEN_MPI}, Placement(1, 2, 1, 2, "Open MPI")),
        ({**SRUN_PER_HOST, **DEEPSPEED}, Placement(13, 16, 5, 8, "torchrun")),
        ({**DEEPSPEED, "LOCAL_SIZE": "9"}, Placement(13, 16, 5, 9, "torchrun")),
    ],
)
def test_every_launchers_variables_are_understood(env: dict[str, str], place: Placement) -> None:
    assert placement(env) == place


@pytest.mark.parametrize("env", [{**TORCHRUN, "RANK": "x"}, {**TORCHRUN, "RANK": "8"}, {**TORCHRUN, "LOCAL_RANK": "4"}])
def test_impossible_places_are_one_sentence(env: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="environment: "):
        placement(env)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "1"}, "environment: RANK=0 of WORLD_SIZE=1, but Slurm started this process as SLURM_PROCID=3 of SLURM_STEP_NUM_TASKS=5; unset RANK and WORLD_SIZE, or start with one launcher"),
        ({**SLURM, **TORCHRUN, "WORLD_SIZE": "5", "RANK": "2"}, "environment: RANK=2 of WORLD_SIZE=5, but Slurm started this process as SLURM_PROCID=3 of SLURM_STEP_NUM_TASKS=5; unset RANK and WORLD_SIZE, or start with one launcher"),
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "2"}, "environment: RANK=0 of WORLD_SIZE=2, but Open MPI started this process as OMPI_COMM_WORLD_RANK=1 of OMPI_COMM_WORLD_SIZE=2; unset RANK and WORLD_SIZE, or start with one launcher"),
    ],
)  # fmt: skip
def test_two_launchers_that_tell_two_places_are_one_sentence(env: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        placement(env)
    assert str(caught.value) == said


def test_whoever_starts_ranks_knows_what_tells_of_a_rank() -> None:
    told = {*TORCHRUN, *OPEN_MPI, "PMI_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "GROUP_RANK", "ASSAY_BEACONS"}
    assert {name for name in told if not tells_of_a_rank(name)} == set()
    kept = {"OMP_NUM_THREADS", "NCCL_DEBUG", "SLURM_JOB_ID", "OMPI_MCA_btl", "RANKS", "PATH", "ASSAY_PRESET"}
    assert {name for name in kept if tells_of_a_rank(name)} == set()


def test_several_hosts_need_an_address() -> None:
    assert rendezvous_environment(placement(OPEN_MPI), OPEN_MPI)["MASTER_ADDR"] == "127.0.0.1"
    with pytest.raises(BadInput, match="MASTER_ADDR is not set"):
        rendezvous_environment(placement(SLURM), SLURM)
    nodes = {**SLURM, "SLURM_STEP_NODELIST": "gpu[007-009,12],login1"}
    assert rendezvous_environment(placement(nodes), nodes)["MASTER_ADDR"] == "gpu007"
    ports = {rendezvous_environment(placement(MPICH), {**MPICH, "PMI_JOBID": str(i)})["MASTER_PORT"] for i in range(9)}
    assert len(ports) == 9, "jobs side by side get ports of their own"


def test_the_pinned_pair_crosses_hosts_where_there_are_several() -> None:
    assert first_of_second_host(["a", "a", "a"]) == 1
    assert first_of_second_host(["a", "a", "b", "b"]) == 2


def rank(number: int, world: int, port: int, *args: str, cwd: Path) -> "subprocess.Popen[str]":
    env = environment(RANK=str(number), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    argv = [sys.executable, str(ROOT / "comms/bench.py"), "--join-timeout", "3", *args]
    return subprocess.Popen(argv, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ranks_that_never_come_are_named(tmp_path: Path) -> None:
    port = free_port()
    with rank(0, 4, port, cwd=tmp_path) as first, rank(2, 4, port, cwd=tmp_path) as third:
        said = first.communicate(timeout=60)[1] + third.communicate(timeout=60)[1]
        assert "2 of 4 ranks did not join within 3 s: 1, 3; look at their logs or raise --join-timeout" in said
        assert (first.returncode, third.returncode) == (1, 1)
        assert "Traceback" not in said


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with rank(0, 2, port, cwd=tmp_path) as first:
            said = first.communicate(timeout=60)[1]
    assert f"port {port} is in use; set MASTER_PORT to a free one" in said
    assert first.returncode == 2
    assert "Traceback" not in said


def test_bad_input_is_said_once_for_all_ranks() -> None:
    done = torchrun(2, "comms/bench.py", "--size", "1001", "--ops", "all_gather")
    sentences = [line for line in done.stderr.splitlines() if line.startswith("assay: error: ")]
    assert sentences == [
        "assay: error: --size 1001 does not divide for all_gather: 2 ranks × 4 bytes need a multiple of 8; "
        "the nearest is 1000 or 1008"
    ]
    assert done.returncode != 0


def test_a_backend_that_is_not_built_in_is_one_sentence(tmp_path: Path) -> None:
    with rank(0, 2, free_port(), "--backend", "nccl", cwd=tmp_path) as first:
        said = first.communicate(timeout=60)[1]
    assert "--backend nccl is not built into this torch; it has gloo" in said
    assert first.returncode == 2


def lives(pid: int) -> bool:
    """Whether it still runs; an ended process may stay in the table until its new parent looks."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ranks_end_with_their_torchrun(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += [str(ROOT / "comms/bench.py"), "--out", str(tmp_path), "--budget", "60"]
    agent = subprocess.Popen(argv, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    files = [tmp_path / f"rank-{number:05d}.jsonl" for number in (0, 1)]
    wait_for(lambda: all(file.exists() and file.stat().st_size for file in files), 60, "both ranks' headers")
    pids = [header.pid for file in files if (header := read_rank_file(file).header)]
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    wait_for(lambda: not any(map(lives, pids)), 10, "the ranks to end")
    assert len(pids) == 2
    assert os.getpid() not in pids


# Daemon threads in torch stand for those of gloo that have not yet let go of the last call's tensors.
BUSY = """
import threading, torch
from assay.options.base import ScriptOptions
from assay.ranks import session
def add():
    ones = torch.ones(100)
    while True:
        ones + ones
with session(ScriptOptions(device="cpu"), "tests/busy") as here:
    for _ in range(4):
        threading.Thread(target=add, daemon=True).start()
    here.world.barrier()
    print("measured")
"""


def test_threads_of_a_backend_do_not_turn_a_success_into_a_crash(tmp_path: Path) -> None:
    port = free_port()
    ranks = []
    for number in range(2):
        env = environment(RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        argv = [sys.executable, "-c", BUSY]
        ranks.append(subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True))
    told = [one.communicate(timeout=60)[0] for one in ranks]
    assert [one.returncode for one in ranks] == [0, 0]
    assert told == ["measured\n"] * 2
