"""Every script in slurm/ on a real Slurm with several hosts, at tiny scale: submitted as a person does, to its report."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Lab, cluster
from tests.conftest import ROOT, wait_for

pytestmark = pytest.mark.timeout(400)  # six runs of torch on several hosts, beside whatever else runs here

# One step or two of each: what is shown is that it runs, and whose host each rank was on.
TRAIN = ("-o", "steps=2", "-o", "warmup_steps=1", "-o", "global_batch=4", "-o", "join_timeout=300")
PRETRAINED = ["bert", "pretrain-internlm-tiny", "pretrain-large-gpt3-tiny", "pretrain-llama-tiny"]
COMMS = ("-o", "budget=0.05", "-o", "join_timeout=300")
MINE = """
assay: 1
name: mine
limits: false
doctor: false
cases:
  - {name: first, script: comms/bench, world: 2, options: {ops: all_reduce, size: 1KiB, budget: 0.05}}
  - {name: second, script: comms/bench, world: 2, options: {ops: broadcast, size: 1KiB, budget: 0.05}}
"""
FAILING = (
    MINE.split("cases:")[0]
    + """
cases:
  - {name: failing, script: comms/bench, world: 2, options: {ops: all_reduce, size: 1KiB, device: cuda}}
"""
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster(nodes=2) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's scripts and suites with a site's settings; the code is this environment's."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("slurm", "suites"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("site.env", "__pycache__"))
    (folder / "slurm/site.env").write_text(f"ASSAY_PYTHON='{sys.executable}'\nGLOO_SOCKET_IFNAME=eth0\n")
    return folder


def submit(lab: Lab, cwd: Path, script: str, *args: str, options: tuple[str, ...] = (), **env: str) -> int:
    """sbatch SCRIPT ARGS, with a script's own #SBATCH lines; its job id."""
    done = lab.login(["sbatch", "--parsable", *options, script, *args], cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def finished(lab: Lab, job: int, home: Path, output: Path, suite: str) -> dict[str, Any]:
    """The run of a job that has to succeed: case → the hosts of its ranks, in their order."""
    known = lab.wait_job(job, {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}, 300)
    said = output.read_text()
    assert (known["JobState"], known["ExitCode"]) == ("COMPLETED", "0:0"), said
    run = home / f"runs/{suite}-{job}"
    assert f"run folder: {run}" in said
    assert "<html" in (run / "report.html").read_text()
    told = {}
    for case in sorted((run / "cases").iterdir()):
        (attempt,) = case.glob("attempt-*")
        assert json.loads((attempt / "status.json").read_text())["state"] == "passed"
        heads = [file.read_text().partition("\n")[0] for file in sorted(attempt.glob("rank-*.jsonl"))]
        told[case.name] = [json.loads(head)["host"] for head in heads]
    return told


@pytest.mark.parametrize(
    ("script", "nodes", "per_node", "suite", "args", "cases"),
    [
        pytest.param("train_8card", 1, 2, "train-tiny", TRAIN, PRETRAINED, marks=pytest.mark.prove),  # a minute of it
        ("finetune_32card", 2, 1, "finetune-tiny", TRAIN, ["alpaca-lora-int8", "alpaca-lora-no-int8", "full"]),
        ("comms_8card", 1, 2, "communication-tiny", COMMS, ["large", "parts"]),
        ("comms_32card", 2, 1, "communication-tiny", COMMS, ["large", "parts"]),
    ],
)
def test_a_scripts_small_twin_runs_on_all_ranks_of_the_allocation(
    lab: Lab, home: Path, script: str, nodes: int, per_node: int, suite: str, args: tuple[str, ...], cases: list[str]
) -> None:
    env = {"ASSAY_PRESET": "tiny", "ASSAY_RANKS_PER_NODE": str(per_node)}
    job = submit(lab, home, f"slurm/{script}.sh", *args, options=(f"--nodes={nodes}", "--time=10"), **env)
    name = f"assay-{script.replace('_', '-')}"
    hosts = finished(lab, job, home, home / f"{name}-{job}.out", suite)
    given = [f"node{n}" for n in range(1, nodes + 1) for _ in range(per_node)]
    assert hosts == dict.fromkeys(cases, given), "rank 0 on the first host, the others in their order"


def test_a_suite_of_ones_own_from_elsewhere_goes_on_after_a_requeue(lab: Lab, home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    # Not even the environment of the shell comes along, as many sites have it.
    options = ("--nodes=2", "--gpus-per-node=1", "--time=10", f"--export=NONE,ASSAY_HOME={home}")
    job = submit(lab, tmp_path, str(home / "slurm/suite.sh"), "mine.yaml", options=options)
    first = home / f"runs/mine-{job}/cases/first/attempt-1/status.json"
    wait_for(first.exists, 60, "the first case's end")
    assert lab.login(["scontrol", "requeue", str(job)], cwd=tmp_path).returncode == 0
    wait_for(lambda: lab.job(job)["Restarts"] == "1", 20, "the requeue")
    ended = json.loads(first.read_text())
    known = lab.wait_job(job, {"COMPLETED", "FAILED", "CANCELLED"}, 120)
    said = (tmp_path / f"assay-suite-{job}.out").read_text()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1"), said
    run = home / f"runs/mine-{job}"
    attempts = {case.name: sorted(path.name for path in case.glob("attempt-*")) for case in (run / "cases").iterdir()}
    assert attempts["first"] == ["attempt-1"], "what had passed is kept"
    assert json.loads(first.read_text()) == ended
    last = run / "cases/second" / attempts["second"][-1]
    assert json.loads((last / "status.json").read_text())["state"] == "passed"
    assert (run / "report.html").exists()


def test_a_job_ends_with_the_exit_code_of_its_run(lab: Lab, home: Path) -> None:
    (home / "failing.yaml").write_text(FAILING)
    options = ("--gpus-per-node=2", "--time=5")
    jobs = [submit(lab, home, "slurm/suite.sh", suite, options=options) for suite in ("no-such-suite", "failing.yaml")]
    codes = [lab.wait_job(job, {"COMPLETED", "FAILED"}, 90)["ExitCode"] for job in jobs]
    said = [(home / f"assay-suite-{job}.out").read_text() for job in jobs]
    assert codes == ["2:0", "1:0"], said
    assert "no such file or shipped suite" in said[0]
    assert "failed   failing" in said[1]
