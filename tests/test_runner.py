"""Faults of a run, with real signals on real processes: what is measured is kept, nothing is left behind."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from assay.record import read_rank_file
from tests.conftest import TINY, assay, environment, processes_of, wait_for

KILLABLE = """
assay: 1
name: k
limits: false
doctor: false
time_limit: 90
cases:
  - {name: a, script: specs/limits, options: &fast {seconds: 0.05, gemm_size: 64, copy_bytes: 64KiB}}
  - {name: b, script: specs/limits, world: 2, options: *fast}
  - {name: c, script: specs/limits, options: *fast}
"""

SLOW = """
assay: 1
name: slow
limits: false
doctor: false
cases:
  - {name: first, script: specs/limits, options: {seconds: 0.05, gemm_size: 64, copy_bytes: 64KiB}}
  - name: long
    script: comms/bench
    world: 2
    time_limit: LIMIT
    options: {ops: all, min: 1KiB, max: 1KiB, budget: 60, max_calls: 10000000}
"""


def start(folder: Path, text: str, *args: str) -> "subprocess.Popen[str]":
    (folder / "s.yaml").write_text(text)
    argv = [sys.executable, "-m", "assay", "run", "s.yaml", *args]
    # Output goes to a file: a pipe nobody reads would stop the run.
    with (folder / "console.txt").open("w") as console:
        return subprocess.Popen(argv, cwd=folder, env=environment(), stdout=console, stderr=console, text=True)


def the_run(folder: Path) -> Path:
    runs = folder / "runs"
    wait_for(
        lambda: runs.is_dir() and any(path.joinpath("run.json").exists() for path in runs.iterdir()), 30, "run.json"
    )
    return next(runs.iterdir())


def ranks_of(attempt: Path) -> list[int]:
    return [header.pid for path in sorted(attempt.glob("rank-*.jsonl")) if (header := read_rank_file(path).header)]


def wait_for_ranks(attempt: Path, world: int) -> list[int]:
    wait_for(lambda: attempt.is_dir() and len(ranks_of(attempt)) == world, 60, f"{world} ranks in {attempt.name}")
    return ranks_of(attempt)


def status(attempt: Path) -> dict[str, object]:
    document = json.loads((attempt / "status.json").read_text())
    assert isinstance(document, dict)
    return document


def results(run: Path) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Case → for each attempt that passed: its name is left out, the set of metrics per rank is kept."""
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for case in sorted((run / "cases").iterdir()):
        passed = [
            path
            for path in case.glob("attempt-*")
            if (path / "status.json").exists() and status(path)["state"] == "passed"
        ]
        found[case.name] = [
            (path.name, tuple(sorted({block.metric for block in read_rank_file(path).blocks})))
            for attempt in passed
            for path in sorted(attempt.glob("rank-*.jsonl"))
        ]
    return found


PHASES = ("attempt-*", "attempt-*/rank-*.jsonl", "attempt-*/status.json")


def wait_for_next(run: Path, phase: str, runner: "subprocess.Popen[str]") -> bool:
    """Return when one more file of `phase` has appeared in any case, or the runner has ended; whether one did."""
    before = set((run / "cases").glob(f"*/{phase}"))
    wait_for(lambda: runner.poll() is not None or set((run / "cases").glob(f"*/{phase}")) != before, 60, phase)
    return set((run / "cases").glob(f"*/{phase}")) != before


def kill_and_resume(folder: Path, kills: int, seed: int) -> None:
    """Kill the runner around the moments at which the folder changes: a random phase, then a random split second."""
    reference_folder = folder / "reference"
    reference_folder.mkdir()
    (reference_folder / "s.yaml").write_text(KILLABLE)
    assert assay("run", "s.yaml", cwd=reference_folder).returncode == 0
    reference = results(next((reference_folder / "runs").iterdir()))

    moments = random.Random(seed)
    runner = start(folder, KILLABLE)
    run = the_run(folder)
    met = set()
    for number in range(kills):
        phase = PHASES[number % len(PHASES)]
        if wait_for_next(run, phase, runner):
            met.add(phase)
        time.sleep(moments.uniform(0.0, 0.2))
        runner.kill()
        runner.wait()
        with (folder / "console.txt").open("a") as console:
            argv = [sys.executable, "-m", "assay", "run", "--resume", str(run)]
            runner = subprocess.Popen(argv, cwd=folder, env=environment(), stdout=console, stderr=console, text=True)
    assert runner.wait(120) == 0, (folder / "console.txt").read_text()
    assert results(run) == reference, "the same set of results, each once"
    assert met == set(PHASES), "the kills hit every phase"
    wait_for(lambda: processes_of(run) == [], 10, "every process of the run to end")
    assert "Traceback" not in (folder / "console.txt").read_text()


def test_kill_9_at_random_moments_then_resume_gives_the_same_results(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=6, seed=1)


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(2, 8))
def test_kill_9_many_times(tmp_path: Path, seed: int) -> None:
    kill_and_resume(tmp_path, kills=8, seed=seed)


def test_ranks_die_with_a_killed_runner(tmp_path: Path) -> None:
    runner = start(tmp_path, SLOW.replace("LIMIT", "100"))
    run = the_run(tmp_path)
    pids = wait_for_ranks(run / "cases/long/attempt-1", 2)
    runner.kill()
    runner.wait()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), 10, "the ranks to end")
    wait_for(lambda: processes_of(run) == [], 10, "everything else to end")
    assert not (run / "cases/long/attempt-1/status.json").exists(), "an attempt whose runner died has no status"
    assert status(run / "cases/first/attempt-1")["state"] == "passed"


@pytest.mark.parametrize("pause", [0.3, 1.0, 2.0])
def test_ranks_that_still_import_die_when_their_lifeline_is_killed(tmp_path: Path, pause: float) -> None:
    runner = start(tmp_path, SLOW.replace("LIMIT", "100"))
    run = the_run(tmp_path)
    wait_for(lambda: (run / "cases/long/attempt-1/command.json").exists(), 60, "the launch")
    time.sleep(pause)
    (lifeline,) = psutil.Process(runner.pid).children()
    lifeline.kill()
    assert runner.wait(60) == 1
    assert processes_of(run) == []
    assert status(run / "cases/long/attempt-1")["state"] == "failed"


def test_ranks_die_even_when_their_lifeline_is_killed(tmp_path: Path) -> None:
    runner = start(tmp_path, SLOW.replace("LIMIT", "100"))
    run = the_run(tmp_path)
    pids = wait_for_ranks(run / "cases/long/attempt-1", 2)
    (lifeline,) = psutil.Process(runner.pid).children()
    lifeline.kill()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), 10, "the ranks to end")
    assert runner.wait(60) == 1
    assert status(run / "cases/long/attempt-1")["state"] == "failed"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_scheduler_leaves_a_true_state_and_says_how_to_go_on(tmp_path: Path, stop: signal.Signals) -> None:
    runner = start(tmp_path, SLOW.replace("LIMIT", "100"))
    run = the_run(tmp_path)
    wait_for_ranks(run / "cases/long/attempt-1", 2)
    runner.send_signal(stop)
    assert runner.wait(30) == 130
    assert processes_of(run) == []
    found = status(run / "cases/long/attempt-1")
    assert (found["state"], found["phase"]) == ("failed", "interrupted")
    console = (tmp_path / "console.txt").read_text()
    assert f"assay run --resume runs/{run.name}" in console
    assert "Traceback" not in console


def test_a_hung_rank_ends_at_the_time_limit_and_is_named_with_every_ranks_stack(tmp_path: Path) -> None:
    several = "{ops: all_reduce, min: 1KiB, max: 64MiB, factor: 4, budget: 2}"
    runner = start(tmp_path, re.sub(r"{ops: all.*}", several, SLOW.replace("LIMIT", "25")))
    run = the_run(tmp_path)
    attempt = run / "cases/long/attempt-1"
    pids = wait_for_ranks(attempt, 2)
    wait_for(lambda: all(measured(attempt, rank) for rank in range(2)), 25, "a size to be measured")
    os.kill(pids[1], signal.SIGSTOP)
    before = [measured(attempt, rank) for rank in range(2)]
    assert runner.wait(90) == 1
    found = status(attempt)
    assert found["state"] == "timeout"
    reason = str(found["reason"])
    assert reason.startswith("not done within its time limit of 25 s; no progress for 2 s in all_reduce of "), reason
    assert re.search(r"iteration \d+: .*rank 1 is stopped \(SIGSTOP\); where each rank was: /", reason), reason
    assert "rank 1 is stopped (SIGSTOP)" in (run / "report.md").read_text(), "the rest of the run is reported, and this"
    stacks = sorted(attempt.glob("stacks-rank-*.txt"))
    assert len(stacks) == 2
    assert all("bench.py" in path.read_text() for path in stacks)
    assert [measured(attempt, rank)[: len(kept)] for rank, kept in enumerate(before)] == before, (
        "what was measured is kept"
    )
    assert processes_of(run) == []


def measured(attempt: Path, rank: int) -> list[tuple[object, int]]:
    """Bytes and number of calls of every size that a rank has in its records, timed call by call."""
    blocks = read_rank_file(attempt / f"rank-{rank:05d}.jsonl").blocks
    return [(block.tags["bytes"], len(block.samples)) for block in blocks if block.metric == "call_exit"]


def test_a_rank_that_dies_is_a_failed_case_and_the_next_case_runs(tmp_path: Path) -> None:
    text = (
        SLOW.replace("LIMIT", "100")
        + "  - {name: last, script: specs/limits, options: {seconds: 0.05, gemm_size: 64}}\n"
    )
    runner = start(tmp_path, text)
    run = the_run(tmp_path)
    pids = wait_for_ranks(run / "cases/long/attempt-1", 2)
    os.kill(pids[1], signal.SIGKILL)
    assert runner.wait(90) == 1
    found = status(run / "cases/long/attempt-1")
    assert found["state"] == "failed"
    assert found["reason"] == "rank 1 was killed by signal 9 (SIGKILL: by hand, or by the kernel when memory ran out)"
    assert status(run / "cases/last/attempt-1")["state"] == "passed"
    assert processes_of(run) == []


def test_two_runners_never_share_a_folder(tmp_path: Path) -> None:
    runner = start(tmp_path, SLOW.replace("LIMIT", "100"))
    run = the_run(tmp_path)
    second = assay("run", "--resume", run, cwd=tmp_path)
    assert second.returncode == 2
    assert f"another runner owns this folder (pid {runner.pid} on" in second.stderr
    runner.send_signal(signal.SIGINT)
    runner.wait(30)


def test_a_finished_run_is_not_run_again(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    again = assay("run", "--resume", run, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("passed before") == 3
    assert [len(list(case.glob("attempt-*"))) for case in (run / "cases").iterdir()] == [1, 1, 1]


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    suite = tmp_path / "s.yaml"
    suite.write_text(TINY)
    # A file system of 20 MiB, seen by the run alone, which is full once the first case has passed.
    script = (
        'mount -t tmpfs -o size=20m none "$1" || exit 99\n'
        'ASSAY="$2 -m assay"\n'
        '(until [ -e "$1"/runs/*/cases/limits-2/attempt-1/status.json ]; do sleep 0.1; done\n'
        ' cat /dev/zero > "$1/filler") 2> "$1.filler" &\n'
        '$ASSAY run "$3" --out "$1/runs"; echo "first: $?"\n'
        'wait; rm "$1/filler"\n'
        '$ASSAY run --resume "$1"/runs/*; echo "second: $?"\n'
    )
    argv = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", str(disk), sys.executable, str(suite)]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=170
    )
    told = done.stdout + done.stderr
    assert "first: 1" in told, told
    assert "disk is full" in told or "no space left on device" in told
    assert "Traceback" not in told, told
    assert "second: 0" in told, told


def test_garbage_between_records_is_named_and_costs_nothing_else(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = assay("score", run, cwd=tmp_path).stdout
    file = run / "cases/comms/attempt-1/rank-00001.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + "NCCL WARN something\n" + "".join(lines[1:3]) + "\x00\xff{]\n" + "".join(lines[3:]))
    done = assay("report", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rank-00001.jsonl" in (run / "report.md").read_text()
    assert "2 lines are no records; first: line 2" in (run / "report.md").read_text()
    assert assay("score", run, cwd=tmp_path).stdout == before
