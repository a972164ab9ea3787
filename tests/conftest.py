"""Real processes for the tests: the installed `assay` command and ranks under torchrun."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from assay.record import RankFile, read_rank_file
from assay.scoring.result import Figure

ROOT = Path(__file__).parents[1]

TINY = """
assay: 1
name: tiny
description: seconds long, for the tests
time_limit: 90
limits: false
doctor: false
cases:
  - name: limits-2
    script: specs/limits
    world: 2
    options: {seconds: 0.05, gemm_size: 128, copy_bytes: 1MiB}
  - name: comms
    script: comms/bench
    world: 2
    options: {ops: "all_reduce,broadcast", min: 1KiB, max: 64KiB, factor: 64, budget: 0.05}
  - name: train
    script: workloads/pretrain
    world: 2
    options: {engine: ddp, steps: 20, warmup_steps: 2, seq_len: 16, global_batch: 4, micro_batch: 2, data: dummy}
"""


# A slow moment of the machine is no failure: nothing here asserts times.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

# Ceilings of the machine that tests run on must not come into the tests, nor theirs into its cache.
_CACHE = tempfile.TemporaryDirectory(prefix="assay-tests-")


# A shell starts what runs in its background with SIGINT ignored, which every process started here would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**more: str) -> dict[str, str]:
    """This process's environment with one thread a rank and nothing of a surrounding launcher."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in launchers}
    return {**kept, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": _CACHE.name, **more}


def assay(*args: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the `assay` command to its end."""
    argv = [sys.executable, "-m", "assay", *map(str, args)]
    return subprocess.run(
        argv, cwd=cwd, env=environment(**env), capture_output=True, text=True, check=False, timeout=170
    )


def torchrun(
    world: int, script: str, *args: str | Path, limit: float = 170, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of ours under torchrun, as a person does, for at most `limit` s."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    argv += [str(ROOT / script), *map(str, args)]
    return subprocess.run(argv, env=environment(**env), capture_output=True, text=True, check=False, timeout=limit)


def mpirun(world: int, script: str, *args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of ours under Open MPI's mpirun, more ranks than cores if need be."""
    argv = ["mpirun", "--oversubscribe", "-n", str(world), sys.executable, str(ROOT / script), *map(str, args)]
    # It refuses root, which containers are, unless told twice.
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env = {**environment(**env), **allowed}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=170)


def rank_files(folder: Path) -> list[RankFile]:
    """The records of every rank, whole and without a foreign line between them."""
    files = [read_rank_file(path) for path in sorted(folder.glob("rank-*.jsonl"))]
    assert all(file.header and not file.garbage and not file.torn for file in files)
    return files


def by_metric(figures: list[Figure], size: int) -> dict[str, Figure]:
    """The figures of one size of one sweep."""
    return {figure.metric: figure for figure in figures if figure.tags["bytes"] == size}


def value(figure: Figure) -> float:
    """A figure that must be known."""
    assert figure.value is not None, figure.reason
    return figure.value


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when `condition` holds; fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def processes_of(run: Path) -> list[psutil.Process]:
    """Live processes whose command line names the run folder: ranks, torchrun and lifelines of that run."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(run) in word for word in words):
            found.append(process)
    return [process for process in found if process.pid != os.getpid()]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny suite. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.yaml").write_text(TINY)
    done = assay("run", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "runs").iterdir()
    return run
