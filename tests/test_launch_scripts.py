"""launch/: a script of one's own on several ranks, as a person starts it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.slurm_answers import answer

TELL = """
import json, os, sys
names = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ASSAY_RUN", "OMP_NUM_THREADS")
told = {name: os.environ[name] for name in names if name in os.environ}
# One write a rank: ranks share the stream.
os.write(1, (json.dumps([told, sys.argv[1:]]) + "\\n").encode())
sys.exit(int(sys.argv[1]))
"""
# As of a rank of another job, in whose shell somebody now works.
STALE = {"RANK": "5", "WORLD_SIZE": "9", "LOCAL_RANK": "5", "MASTER_ADDR": "gone", "MASTER_PORT": "1", "ASSAY_RUN": "1"}
# mpirun refuses root, which containers are, unless told twice.
ROOT_TOO = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# srun with one task: it leaves its own options, and becomes the rest.
SRUN = """#!/bin/sh
echo "$@" > "$0.argv"
for word; do case $word in -*) shift;; *) break;; esac; done
export SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0 SLURM_STEP_TASKS_PER_NODE=1
exec "$@"
"""
IN_JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_CPUS_PER_NODE": "6"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my tell.py").write_text(TELL)
    return tmp_path


def launch(name: str, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / f"launch/{name}.py"), *args]
    env = environment(**{**STALE, **ROOT_TOO, **env})
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=100)


def told(text: str, rank: str) -> dict[int, tuple[dict[str, str], list[str]]]:
    """Rank → its variables and its arguments."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("[{")]
    return {int(variables[rank]): (variables, arguments) for variables, arguments in lines}


def test_a_script_of_ones_own_runs_on_every_rank_under_torchrun(folder: Path) -> None:
    done = launch("local", "-n", "2", "my tell.py", "--", "0", "--its-own", "a b", cwd=folder)
    assert done.returncode == 0, done.stderr
    ranks = told(done.stdout, "RANK")
    assert sorted(ranks) == [0, 1]
    for variables, arguments in ranks.values():
        assert arguments == ["0", "--its-own", "a b"]
        assert variables["WORLD_SIZE"] == "2"
        assert variables["MASTER_ADDR"] != "gone", "what an outer launcher said is for nobody below"
        assert "ASSAY_RUN" not in variables, "a person reads, no runner"


def test_a_script_of_ones_own_runs_on_every_rank_under_mpirun_and_its_exit_code_is_passed_on(folder: Path) -> None:
    done = launch("mpi", "-n", "2", "my tell.py", "--", "3", "x", cwd=folder, NCCL_DEBUG="WARN")
    assert done.returncode == 3
    ranks = told(done.stdout, "OMPI_COMM_WORLD_RANK")
    assert ranks, done.stderr
    for variables, arguments in ranks.values():
        assert arguments == ["3", "x"]
        assert not {"RANK", "WORLD_SIZE", "ASSAY_RUN"} & set(variables)
        assert variables["MASTER_ADDR"] == "127.0.0.1"
    assert "could not find environment variable" not in done.stderr


def test_what_a_dry_run_prints_works_when_it_is_typed(folder: Path) -> None:
    printed = launch("mpi", "--dry-run", "-n", "2", "my tell.py", "--", "0", "it's", cwd=folder)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.count("\n") == 1
    done = subprocess.run(
        ["sh", "-c", printed.stdout],
        env=environment(**ROOT_TOO),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    ranks = told(done.stdout, "OMPI_COMM_WORLD_RANK")
    assert [ranks[rank][1] for rank in (0, 1)] == [["0", "it's"]] * 2


def test_inside_a_job_the_script_is_a_step_of_it(folder: Path) -> None:
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    args = ("--spawn", "srun", "--port", "29555", "my tell.py", "--", "7", "-x")
    done = launch("slurm", *args, cwd=folder, PATH=path, **IN_JOB, OMP_NUM_THREADS="")
    assert done.returncode == 7, done.stderr
    ((variables, arguments),) = told(done.stdout, "SLURM_PROCID").values()
    assert arguments == ["7", "-x"]
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("localhost", "29555")
    assert variables["OMP_NUM_THREADS"] == "6", "the cores of the job's host, not of this one"
    assert (variables["RANK"], variables["WORLD_SIZE"]) == ("0", "1"), "a foreign script knows no Slurm"
    assert "ASSAY_RUN" not in variables
    assert "--ntasks=1 " in (folder / "srun.argv").read_text()
    more = launch("slurm", "-N", "2", "my tell.py", cwd=folder, PATH=path, **IN_JOB)
    assert (more.returncode, more.stderr) == (
        2,
        "assay: error: -N 2: the job 77 has 1 hosts; ask for more with sbatch -N\n",
    )


def test_outside_of_a_job_it_becomes_one_and_is_followed_to_its_exit_code(folder: Path) -> None:
    slurm = folder / "slurm"
    answer(slurm, "srun")
    argv = answer(slurm, "sbatch", "12\n")
    answer(slurm, "squeue", "12|FAILED|NonZeroExitCode|n1\n")
    answer(slurm, "scontrol", "JobId=12 JobState=FAILED ExitCode=9:0\n")
    path = f"{slurm}:{os.environ['PATH']}"
    done = launch("slurm", "-N", "2", "-n", "4", "my tell.py", "--", "0", "a b", cwd=folder, PATH=path)
    assert done.returncode == 9, done.stderr
    file = Path(argv.read_text().splitlines()[-1])
    assert done.stdout == f"job 12: {file}\n"
    assert done.stderr == "my tell: Slurm job 12 is failed on n1\n"
    text = file.read_text()
    assert "#SBATCH --nodes=2\n" in text
    assert f"-N 2 -n 4 --spawn torchrun '{folder}/my tell.py' -- 0 'a b'\n" in text
    planned = launch("slurm", "-N", "2", "-n", "4", "--dry-run", "my tell.py", "--", "0", "a b", cwd=folder, PATH=path)
    folders = r"/launch-[^/]*/"
    assert re.sub(folders, "/", planned.stdout) == re.sub(folders, "/", text)
    assert len(list((folder / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("script", "args", "said"),
    [
        ("local", ("-n", "0", "my tell.py"), "argument -n/--per-node: expected a whole number above 0, got '0'; --help tells what there is"),
        ("local", ("-n", "2", "comms/bech.py"), "script 'comms/bech.py': no such file; did you mean 'comms/bench'?"),
        ("local", ("my tell.py", "--lr", "3"), "unrecognized arguments: --lr 3; our own come before the script, the script's behind --"),
        ("mpi", ("-N", "2", "my tell.py"), "-N 2: only 1 hosts are known; name them with --hostfile"),
        ("mpi", ("--hostfile", "none.txt", "my tell.py"), "hostfile none.txt: no such file or directory; give a file with one host a line"),
        ("slurm", ("--port", "70000", "my tell.py"), "argument --port: expected a port from 1 to 65535, got '70000'; --help tells what there is"),
        ("slurm", ("--time", "nan", "my tell.py"), "argument --time: expected minutes above 0, got 'nan'; --help tells what there is"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(folder: Path, script: str, args: tuple[str, ...], said: str) -> None:
    done = launch(script, *args, cwd=folder)
    assert (done.returncode, done.stderr, done.stdout) == (2, f"assay: error: {said}\n", "")


@pytest.mark.parametrize(("script", "command"), [("slurm", "sbatch"), ("mpi", "mpirun")])
def test_what_is_not_installed_is_one_sentence(folder: Path, script: str, command: str) -> None:
    done = launch(script, "-n", "2", "my tell.py", cwd=folder, PATH=str(folder))
    assert done.returncode == 2
    assert re.fullmatch(rf"assay: error: [^\n]*there is no {command} here; [^\n]*\n", done.stderr)


def test_an_mpirun_of_another_family_is_one_sentence(folder: Path) -> None:
    answer(folder / "bin", "mpirun", "HYDRA build details:\n    Version: 4.0\n")
    done = launch("mpi", "my tell.py", cwd=folder, PATH=f"{folder}/bin:/usr/bin:/bin")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "mpirun here is not Open MPI's (it says: HYDRA build details:)" in done.stderr


def test_a_script_of_ours_is_found_by_its_name_from_anywhere(folder: Path) -> None:
    for name in ("comms/bench", "comms/bench.py", str(ROOT / "comms/bench.py")):
        done = launch("local", "-n", "2", "--dry-run", name, "--", "--ops", "all_reduce", cwd=folder)
        assert done.stdout.endswith(f" -- {ROOT}/comms/bench.py --ops all_reduce\n"), done.stderr
