"""Ranks that hang are named and ended, by hand and under the launcher, and what they leave in memory is swept."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from assay.beacon import (
    FOLDER_VARIABLE,
    read_beacons,
)
from assay.channel import Alone
from assay.errors import RunFailed
from assay.hang_watch import SWEPT_SECONDS, answer_stack_requests, beacon_of, collect_stacks, sweep
from assay.launchers import attended
from assay.launchers.protocol import Command, Outcome
from assay.record import read_rank_file
from assay.stack_signal import STACK_SIGNAL
from assay.world import World
from tests.conftest import environment, torchrun


def test_by_hand_a_stopped_rank_is_named_once_and_all_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = torchrun(3, "tests/ranks_hang.py", out, "3")
    told = [line for line in done.stderr.splitlines() if line.startswith("assay: error: ")]
    assert len(told) == 1, done.stderr
    place = "all_reduce of 4KiB, call by call"
    assert (
        f"no progress for 3 s in {place}, iteration 7: rank 1 never entered it (last seen in {place}, before "
        in told[0]
    )
    assert "ranks 0 and 2 are inside, rank 1 is stopped (SIGSTOP); where each rank was: " in told[0]
    assert done.returncode == 1
    for rank in range(3):
        (stacks,) = out.glob(f"stacks-rank-{rank:05d}.pid-*.txt")
        assert "ranks_hang.py" in stacks.read_text()
        assert not psutil.pid_exists(int(stacks.stem.rpartition("-")[2])), "every rank has ended"
        (block,) = read_rank_file(out / f"rank-{rank:05d}.jsonl").blocks
        assert (block.tags["bytes"], len(block.samples)) == (1024, 20), "what was measured before is kept"


# One rank without torch, in its own folder of memory: it hangs, or waits to be ended.
ALONE = """
import os, signal, sys, time
from pathlib import Path
from assay.hang_watch import answer_stack_requests, beacon_of
from assay.world import World
out, limit = Path(sys.argv[1]), float(sys.argv[2])
answer_stack_requests(out, 0)
with beacon_of(World(0, 1, 0, 1, "none", ("here",), True), out, limit) as beacon:
    beacon.phase("broadcast", 1024, "back to back")
    print(beacon.folder, flush=True)
    time.sleep(60)
"""


def start_alone(out: Path, limit: float, stderr: int | None = None) -> tuple["subprocess.Popen[str]", Path]:
    env = environment()
    env.pop(FOLDER_VARIABLE, None)
    argv = [sys.executable, "-c", ALONE, str(out), str(limit)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, env=env, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    process.stdout.close()
    return process, folder


def make_old(folder: Path) -> None:
    before = time.time() - SWEPT_SECONDS - 1
    os.utime(folder, (before, before))


def test_a_hung_rank_ends_though_nobody_reads_what_it_says(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process, folder = start_alone(tmp_path, 0.3, writing)
    os.close(writing)
    os.close(reading)
    try:
        assert process.wait(20) == 1
    finally:
        process.kill()
        process.wait()
    assert not folder.exists()
    (stacks,) = tmp_path.glob("stacks-rank-00000.pid-*.txt")
    assert "Thread" in stacks.read_text(), "what can still be told is told"


def test_a_rank_that_ends_when_asked_for_its_stacks_is_left_out(tmp_path: Path) -> None:
    code = (  # blocked before libraries start threads, or one of these would answer
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [int(sys.argv[2])])\n"
        "from pathlib import Path; from assay.hang_watch import answer_stack_requests\n"
        "file = answer_stack_requests(Path(sys.argv[1]), 1)\n"
        "signal.signal(signal.SIGCONT, lambda *_: (os.unlink(file.name), os._exit(0)))\n"
        "print(flush=True); signal.pause()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path), str(int(STACK_SIGNAL))]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    stacks = answer_stack_requests(tmp_path, 0)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert collect_stacks(tmp_path) == [Path(stacks.name)]
    finally:
        faulthandler.unregister(STACK_SIGNAL)
        stacks.close()
        process.kill()
        process.communicate()


def test_what_a_signal_left_is_swept_by_the_next_ranks(tmp_path: Path) -> None:
    ended, left = start_alone(tmp_path, 60)
    living, kept = start_alone(tmp_path, 60)
    try:
        ended.terminate()
        assert ended.wait(10) == -signal.SIGTERM, "a rank dies by the signal"
        assert left.exists()
        make_old(left)
        make_old(kept)
        sweep(left.parent)
        assert not left.exists()
        assert kept.exists(), "its rank lives"
    finally:
        for process in (ended, living):
            process.terminate()
            process.wait()
    make_old(kept)
    third, _ = start_alone(tmp_path, 60)
    third.terminate()
    third.wait()
    assert not kept.exists()


def test_a_sweep_takes_nothing_that_it_does_not_know(tmp_path: Path) -> None:
    names = ("assay-young", "assay-told", "assay-asked", "assay-foreign", "assay-empty", "other", "assay-gone")
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        if name != "assay-empty":
            (folder / "beacon-00000.bin").touch()
            (folder / "stacks-rank-00000.pid-1.txt").touch()
    (tmp_path / "assay-told" / "hang.txt").touch()
    (tmp_path / "assay-asked" / "stacks-rank-00000.pid-1.txt").write_text("Thread 1")
    (tmp_path / "assay-foreign" / "beacon-00001.bin").mkdir()
    (tmp_path / "assay-file").touch()
    (tmp_path / "assay-link").symlink_to(tmp_path / "other")
    for path in tmp_path.iterdir():
        if path.name not in ("assay-young", "assay-link"):
            make_old(path)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "assay-file", "assay-link"} - {"assay-gone"}


# Two ranks without torch: rank 1 stops itself, or both go on for ever.
RANKS = """
import os, signal, subprocess, sys, time
from pathlib import Path
out, how, rank = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
if not rank:
    children = [subprocess.Popen([sys.executable, *sys.argv, str(rank)]) for rank in range(2)]
    sys.exit(max(child.wait() for child in children))
from assay.beacon import open_beacon
from assay.hang_watch import answer_stack_requests
answer_stack_requests(out, int(rank[0]))
beacon = open_beacon(Path(os.environ["ASSAY_BEACONS"]), int(rank[0]), 2)
beacon.phase("broadcast", 1024, "back to back")
for k in range(1000):
    beacon.cell[0] = 2 * k + 1
    if how == "stop" and k == 3:
        if rank == ["1"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    time.sleep(0.02)
    beacon.cell[0] = 2 * k + 2
"""


def run_ranks(folder: Path, how: str) -> Outcome:
    script = folder / "ranks.py"
    script.write_text(RANKS)
    command = Command([sys.executable, str(script), str(folder), how], {"PYTHONPATH": str(Path.cwd())})
    return attended.run(command, folder, 4.0, None, lambda line: None)


def test_the_launcher_reads_states_before_it_asks_for_stacks(tmp_path: Path) -> None:
    outcome = run_ranks(tmp_path, "stop")
    assert outcome.timed_out
    assert outcome.diagnosis is not None
    assert "broadcast of 1KiB, back to back, iteration 3: both ranks are inside, rank 1 is stopped (SIGSTOP)" in (
        outcome.diagnosis.sentence
    )
    assert len(outcome.stacks) == 2
    assert all("ranks.py" in path.read_text() for path in outcome.stacks)


def test_a_case_that_only_takes_long_is_not_called_a_hang(tmp_path: Path) -> None:
    outcome = run_ranks(tmp_path, "go")
    assert outcome.timed_out
    assert outcome.diagnosis is not None
    assert outcome.diagnosis.moving
    assert outcome.diagnosis.sentence.startswith("still moving in broadcast of 1KiB, back to back, ")


class Torn(Alone):
    """A channel whose other end is gone."""

    def gather(self, item: object) -> list[object]:
        raise RunFailed(f"told {item}")


def test_ranks_by_hand_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    world = World(0, 1, 0, 1, "none", ("here",), True)
    with beacon_of(world, None, 60.0) as beacon:
        assert [reading.rank for reading in read_beacons(beacon.folder)] == [0]
    assert not beacon.folder.exists()
    with pytest.raises(RunFailed), beacon_of(world, None, 60.0) as beacon:
        raise RunFailed("for the test")
    assert not beacon.folder.exists()
    with pytest.raises(RunFailed, match="told ") as caught, beacon_of(replace(world, channel=Torn()), None, 60.0):
        pass
    folder = Path(str(caught.value).removeprefix("told "))
    assert folder.name.startswith("assay-")
    assert not folder.exists()


def test_launched_ranks_leave_nothing_behind(tmp_path: Path) -> None:
    code = "import os; print(os.environ['ASSAY_BEACONS'])"
    attended.run(Command([sys.executable, "-c", code], environment()), tmp_path, 60.0, None, lambda line: None)
    assert not Path((tmp_path / "stdout.log").read_text().strip()).exists()
