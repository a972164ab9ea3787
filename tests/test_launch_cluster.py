"""Launching on a real Slurm of four hosts: what a cluster's user does, and what clusters do to him."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.record import Header, read_header
from tests.cluster.lab import Lab, cluster
from tests.conftest import ROOT, wait_for

ASSAY = [sys.executable, "-m", "assay"]
SHORT = "{ops: all_reduce, min: 1KiB, max: 1KiB, budget: 0.05}"
LONG = "{ops: all_reduce, min: 1KiB, max: 1KiB, budget: SECONDS, max_calls: 10000000}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with cluster(nodes=4) as made:
        yield made


@pytest.fixture(autouse=True)
def _idle(lab: Lab) -> None:
    lab.idle(60)


def suite(folder: Path, *cases: str) -> Path:
    lines = ["assay: 1", "name: s", "limits: false", "doctor: false", "time_limit: 120", "cases:", *cases]
    path = folder / "s.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def case(name: str, options: str = SHORT, world: int | str = "all") -> str:
    return f"  - {{name: {name}, script: comms/bench, world: {world}, options: {options}}}"


def run(lab: Lab, folder: Path, *args: str, seconds: float = 170) -> tuple[int, str]:
    done = lab.login([*ASSAY, "run", *args], cwd=folder, timeout=seconds)
    return done.returncode, done.stdout + done.stderr


def the_run(folder: Path) -> Path:
    wait_for(lambda: any((folder / "runs").glob("*/run.json")), 30, "run.json")
    return next((folder / "runs").iterdir())


def status(run: Path, case: str, attempt: int = 1) -> dict[str, object]:
    document = json.loads((run / "cases" / case / f"attempt-{attempt}" / "status.json").read_text())
    assert isinstance(document, dict)
    return document


def headers(run: Path, case: str, attempt: int = 1) -> list[Header]:
    found = [read_header(path) for path in sorted((run / "cases" / case / f"attempt-{attempt}").glob("rank-*.jsonl"))]
    assert None not in found
    return [header for header in found if header is not None]


def job_of(run: Path, name: str) -> int:
    wait_for(lambda: (run / "jobs" / f"{name}.json").exists(), 30, "the job's record")
    return int(json.loads((run / "jobs" / f"{name}.json").read_text())["job"])


def watch(lab: Lab, folder: Path, *args: str) -> "subprocess.Popen[str]":
    # Output goes to a file: a pipe nobody reads would stop the watcher.
    with (folder / "console.txt").open("w") as console:
        return lab.popen([*ASSAY, "run", *args], cwd=folder, stdout=console, stderr=console)


def test_two_hosts_of_two_ranks_a_job_for_every_case(lab: Lab, tmp_path: Path) -> None:
    suite(tmp_path, case("first"), case("one-host", world=2))
    code, said = run(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "2", "-n", "2")
    assert code == 0, said
    made = the_run(tmp_path)
    places = [(one.rank, one.host, one.local_rank, one.local_world) for one in headers(made, "first")]
    assert places == [(0, "node1", 0, 2), (1, "node1", 1, 2), (2, "node2", 0, 2), (3, "node2", 1, 2)]
    assert {one.host for one in headers(made, "one-host")} == {"node1"}
    assert job_of(made, "first") != job_of(made, "one-host")
    assert (made / "report.html").exists()
    assert "2 cases passed" in said


def test_four_hosts_every_rank_a_task_the_suite_in_one_allocation(lab: Lab, tmp_path: Path) -> None:
    suite(tmp_path, case("tasks"))
    # What users have in their profiles, and would put ranks elsewhere, or nothing of this environment into them.
    profile = {
        "SLURM_DISTRIBUTION": "cyclic",
        "SBATCH_EXPORT": "NONE",
        "SQUEUE_PARTITION": "half",
        "SLURM_LABELIO": "1",
    }
    args = ["s.yaml", "--launcher", "slurm", "-N", "4", "-n", "2", "--spawn", "srun", "--one-job"]
    done = lab.login([*ASSAY, "run", *args], cwd=tmp_path, env=profile, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "when the run began" not in (the_run(tmp_path) / "report.md").read_text()  # head began it, node1 ran it
    made = the_run(tmp_path)
    assert [one.host for one in headers(made, "tasks")] == [f"node{n}" for n in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert [one.local_rank for one in headers(made, "tasks")] == [0, 1] * 4
    # The file in the folder can be submitted again by hand: nothing is measured twice.
    done = lab.login(["sbatch", "--parsable", str(made / "jobs" / "suite.sbatch")], cwd=tmp_path)
    again = int(done.stdout)
    lab.wait_job(again, {"COMPLETED"}, 60)
    assert "kept     tasks" in (made / "jobs" / f"suite-{again}.out").read_text()
    assert len(list((made / "cases" / "tasks").iterdir())) == 2  # case.json and the one attempt


@pytest.mark.parametrize(
    "lost", [pytest.param(1, id="the first host", marks=pytest.mark.prove), pytest.param(2, id="another host")]
)
def test_a_run_goes_on_when_a_host_loses_power(lab: Lab, tmp_path: Path, lost: int) -> None:
    suite(tmp_path, case("first"), case("second", LONG.replace("SECONDS", "4")))
    watcher = watch(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "2", "-n", "1", "--one-job")
    made = the_run(tmp_path)
    attempt = made / "cases" / "second" / "attempt-1"
    wait_for(lambda: len(list(attempt.glob("rank-*.jsonl"))) == 2, 90, "ranks of the second case")
    lab.fail(lost)
    try:
        assert watcher.wait(150) == 0, (tmp_path / "console.txt").read_text()
    finally:
        lab.power_on(lost)
    assert len(list((made / "cases" / "first").glob("attempt-*"))) == 1
    last = max(int(path.name[8:]) for path in (made / "cases" / "second").glob("attempt-*"))
    assert last > 1
    assert status(made, "second", last)["state"] == "passed"
    assert f"node{lost}" not in {one.host for one in headers(made, "second", last)}


def test_scancel_leaves_a_true_state_and_the_run_can_be_finished(lab: Lab, tmp_path: Path) -> None:
    suite(tmp_path, case("slow", LONG.replace("SECONDS", "60")), case("never"))
    watcher = watch(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "2", "-n", "1", "--one-job")
    made = the_run(tmp_path)
    wait_for(lambda: any((made / "cases").glob("slow/attempt-1/rank-*.jsonl")), 90, "ranks")
    job = job_of(made, "suite")
    lab.login(["scancel", str(job)], cwd=tmp_path)
    assert watcher.wait(60) == 1
    for name in ("slow", "never"):
        told = status(made, name)
        assert (told["state"], told["phase"]) == ("failed", "job")
        assert f"Slurm job {job} ended as cancelled" in str(told["reason"])
        assert f"assay run --resume runs/{made.name}" in str(told["advice"])
    assert "before the case began" in str(status(made, "never")["reason"])
    assert not lab.login(["squeue", "--noheader", "--states=running,pending"], cwd=tmp_path).stdout.strip()


def test_the_death_of_the_watcher_is_survived(lab: Lab, tmp_path: Path) -> None:
    suite(tmp_path, case("slow", LONG.replace("SECONDS", "4")))
    watcher = watch(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "1", "-n", "2")
    made = the_run(tmp_path)
    job = job_of(made, "slow")
    watcher.send_signal(signal.SIGKILL)
    watcher.wait(10)
    code, said = run(lab, tmp_path, "--resume", str(made))
    assert code == 0, said
    assert f"slow: is job {job} already" in said
    assert status(made, "slow")["state"] == "passed"


@pytest.mark.parametrize(
    ("option", "waits"),
    [
        ("--begin=now+1hour", r"is pending \(BeginTime\)\n"),
        ("--hold", r"is pending \(JobHeldUser\): scontrol release \d+\n"),
    ],
)
def test_why_a_job_waits_is_told_and_assay_cancel_ends_it(lab: Lab, tmp_path: Path, option: str, waits: str) -> None:
    suite(tmp_path, case("never"))
    with watch(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "1", "-n", "2", f"--sbatch={option}") as watcher:
        console = tmp_path / "console.txt"
        wait_for(lambda: re.search(waits, console.read_text()) is not None, 30, waits)
        made = the_run(tmp_path)
        ended = lab.login([*ASSAY, "cancel", str(made)], cwd=tmp_path)
        assert ended.stdout == f"cancelled: {job_of(made, 'never')}\n"
        assert watcher.wait(60) == 1
    told = status(made, "never")
    assert told["reason"] == f"Slurm job {job_of(made, 'never')} ended as cancelled before the case began"


def test_a_node_that_is_down_is_one_sentence(lab: Lab, tmp_path: Path) -> None:
    suite(tmp_path, case("a"))
    lab.fail(4)
    code, said = run(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "1", "-n", "2", "--sbatch=--nodelist=node4")
    lab.power_on(4)
    assert code == 2
    assert re.fullmatch(
        r"assay: error: .*node configuration is not available; sinfo -R names nodes that are down.*\n", said
    )


def test_a_port_that_is_taken_is_one_sentence(lab: Lab, tmp_path: Path) -> None:
    text = suite(tmp_path, case("a")).read_text().replace("limits: false", "limits: false\nport: 22")  # the host's sshd
    (tmp_path / "s.yaml").write_text(text)
    argv = ["salloc", "-N1", "--quiet", "srun", "-N1", "-n1", *ASSAY, "run", "s.yaml", "--launcher", "slurm", "-n", "2"]
    done = lab.login(argv, cwd=tmp_path)
    assert "assay: error: port 22: address already in use; give a free one, or none\n" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dying_rank_is_a_failed_job_that_names_it(lab: Lab, tmp_path: Path) -> None:
    suite(tmp_path, case("dies", LONG.replace("SECONDS", "60")))
    watcher = watch(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "2", "-n", "2")
    made = the_run(tmp_path)
    wait_for(lambda: len(list((made / "cases").glob("dies/attempt-1/rank-*.jsonl"))) == 4, 90, "ranks")
    time.sleep(1)
    victim = headers(made, "dies")[3]
    assert victim.host == "node2"
    assert lab.on("node2", ["kill", "-9", str(victim.pid)]).returncode == 0
    assert watcher.wait(90) == 1
    told = status(made, "dies")
    assert (told["state"], told["phase"]) == ("failed", "run")
    assert "rank 3 was killed by signal 9" in str(told["reason"])
    assert lab.job(job_of(made, "dies"))["JobState"] == "FAILED"


def test_two_users_at_once_on_the_same_hosts(lab: Lab, tmp_path: Path) -> None:
    shared = ["--sbatch=--oversubscribe", "--sbatch=--cpus-per-task=4", "--sbatch=--mem=1G"]
    watchers = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        suite(folder, case("both", LONG.replace("SECONDS", "3")))
        args = ("s.yaml", "--launcher", "slurm", "-N", "2", "-n", "1", *shared)
        watchers.append(watch(lab, folder, *args))
    codes = [one.wait(150) for one in watchers]
    assert codes == [0, 0], [(tmp_path / name / "console.txt").read_text() for name in ("a", "b")]
    spans = []
    for name in ("a", "b"):
        job = lab.job(job_of(the_run(tmp_path / name), "both"))
        assert job["NodeList"] == "node[1-2]"
        spans.append((job["StartTime"], job["EndTime"]))
    assert max(start for start, _ in spans) < min(end for _, end in spans)  # they did run at once


def test_mpirun_on_two_hosts_of_a_hostfile(lab: Lab, tmp_path: Path) -> None:
    # Open MPI fills the host first that it is started on, wherever it stands in the file.
    (tmp_path / "hosts").write_text("node2 slots=2\nnode3 slots=2\n")
    suite(tmp_path, case("mpi", "{ops: all_reduce, min: 1KiB, max: 1KiB, budget: 0.05, transport: mpi}"))
    env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_plm_rsh_agent": str(lab.rsh)}
    args = ["run", "s.yaml", "--launcher", "mpi", "-N", "2", "-n", "2", "--hostfile", "hosts"]
    done = lab.on("node3", [*ASSAY, *args], cwd=tmp_path, env=env, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [one.host for one in headers(the_run(tmp_path), "mpi")] == ["node3", "node3", "node2", "node2"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--sbatch=--partition=nowhere"], r"sbatch says: invalid partition specified: nowhere; sinfo lists"),
        (["-N", "9"], r"sbatch says: Requested node configuration is not available; sinfo"),
        (["--sbatch=--gpus-per-node=9"], r"sbatch says: Requested node configuration is not available; sinfo"),
    ],
)
def test_what_slurm_refuses_is_one_sentence_and_nothing_is_written(
    lab: Lab, tmp_path: Path, args: list[str], said: str
) -> None:
    suite(tmp_path, case("a"))
    code, printed = run(lab, tmp_path, "s.yaml", "--launcher", "slurm", "-N", "1", "-n", "2", *args)
    assert code == 2
    assert re.fullmatch(rf"assay: error: {said}.*\n", printed), printed
    assert not (tmp_path / "runs").exists()


def test_a_script_by_hand_ends_with_its_own_exit_code(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "import os, sys\nprint('rank', *map(os.environ.get, ('RANK', 'SLURMD_NODENAME', 'SITE')))\nsys.exit(3)\n"
    )
    argv = [sys.executable, str(ROOT / "launch" / "slurm.py"), "-N", "2", "-n", "1", "--spawn", "torchrun"]
    # A container's engine is a prefix of what runs on every host; env is one that is there.
    site = {"ASSAY_NODE_PREFIX": "env SITE=container"}
    done = lab.login([*argv, str(script)], cwd=tmp_path, env=site, timeout=100)
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("rank ")) == [
        "rank 0 node1 container",
        "rank 1 node2 container",
    ]
    # srun's own: of the torchrun that saw its rank fail, or of the other, which srun then ended.
    assert done.returncode in (1, 128 + signal.SIGTERM), done.stderr


def test_without_a_shared_file_system_records_are_fetched_and_a_host_that_cannot_deliver_is_named(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    suite(tmp_path, case("a"))
    with cluster(nodes=2, unshared=own) as lab:
        # On the second host tar fails, but only the second time.
        for name, code in (("whole", 0), ("torn", 1)):
            script = tmp_path / f"{name}.sh"
            words = [*ASSAY, "run", "s.yaml", "--launcher", "slurm", "-n", "1", "--folder", str(own / name)]
            script.write_text(f"#!/bin/bash\nexec {shlex.join(words)}\n")
            if code:
                assert lab.on("node2", ["mount", "--bind", "/bin/false", "/bin/tar"]).returncode == 0
            done = lab.login(
                ["sbatch", "--parsable", "-N2", f"--output={tmp_path}/{name}.txt", str(script)], cwd=tmp_path
            )
            lab.wait_job(int(done.stdout), {"FAILED" if code else "COMPLETED"}, 90)
        disks = lab.folder / "disks"
        whole, torn = (disks / "node1" / name / "cases" / "a" / "attempt-1" for name in ("whole", "torn"))
        assert [read_header(whole / f"rank-0000{rank}.jsonl").host for rank in (0, 1)] == ["node1", "node2"]  # type: ignore[union-attr]
        assert json.loads((whole / "status.json").read_text())["state"] == "passed"
        told = json.loads((torn / "status.json").read_text())
        assert (told["state"], told["phase"]) == ("failed", "records")
        assert "no records from 1 of 2 ranks: 1; node2 could not deliver its records" in told["reason"]
        assert (disks / "node2" / "torn" / "cases" / "a" / "attempt-1" / "rank-00001.jsonl").exists()
