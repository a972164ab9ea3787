"""The sampling process: started, ended and killed as it is beside real ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from assay.errors import BadInput
from assay.placement import Placement
from assay.record import Block, Header, RankFile, read_rank_file
from assay.recorder import Recorder
from assay.scoring.energy import energy_between
from assay.scoring.sensors import pick, read_sensors
from assay.sensors.sampler import sample
from assay.sensors.sidecar import command, start_sidecar
from assay.sensors.source import Gauge, Reading
from tests.conftest import ROOT, environment, processes_of, torchrun, wait_for

ALONE = Placement(0, 1, 0, 1, "none")
HEADER = Header(0, 1, 0, 1, "n1", 1, "boot", "cpu", "", "none", "test", 0.0, 0.0)

# A rank that does nothing but start its sensors.
RANK = """
import os, sys, time
from pathlib import Path
from assay.placement import Placement
from assay.sensors.sidecar import start_sidecar
sidecar = start_sidecar(Path(sys.argv[1]), Placement(0, 1, 0, 1, "none"), "cpu", "", os.environ)
if "fork" in sys.argv:
    if os.fork() == 0:
        time.sleep(60)
print("started", flush=True)
time.sleep(60)
"""


def rank(out: Path, *words: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", RANK, str(out), *words]
    return subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)


def sampler_of(out: Path) -> psutil.Process:
    found: list[psutil.Process] = []

    def is_there() -> bool:
        found[:] = [one for one in processes_of(out) if "assay/sensors" in " ".join(one.cmdline())]
        return bool(found)

    wait_for(is_there, 10, "the sensors' process")
    return found[0]


def has_begun(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def stamps(read: RankFile, source: str) -> "np.typing.NDArray[np.float64]":
    blocks = [b.samples for b in read.blocks if b.metric == "sensor_time" and b.tags["source"] == source]
    return np.concatenate(blocks)


def blocks_of(read: RankFile, metric: str) -> list[Block]:
    return [block for block in read.blocks if block.metric == metric]


@pytest.fixture
def child(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = rank(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    wait_for(lambda: has_begun(tmp_path / "sensors-00000.jsonl"), 10, "the first record")
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_rank_takes_its_sensors_along(child: "subprocess.Popen[str]", tmp_path: Path, how: int) -> None:
    sampler = sampler_of(tmp_path)
    time.sleep(0.2)
    child.send_signal(how)
    wait_for(lambda: is_gone(sampler), 5, "the sensors' process to end")
    read = read_rank_file(tmp_path / "sensors-00000.jsonl")
    assert not read.torn
    assert read.garbage == []
    assert stamps(read, "time").size >= 2, "what was read last is written"


def test_a_forked_child_that_holds_the_pipe_does_not_keep_it(tmp_path: Path) -> None:
    with rank(tmp_path, "fork") as process:
        assert process.stdout is not None
        process.stdout.readline()
        sampler = sampler_of(tmp_path)
        wait_for(lambda: has_begun(tmp_path / "sensors-00000.jsonl"), 10, "the first record")
        below = psutil.Process(process.pid).children()
        process.kill()
        wait_for(lambda: is_gone(sampler), 5, "the sensors' process to end")
        for one in below:
            if one.pid != sampler.pid:
                one.kill()


def test_nobody_waits_for_output_that_the_sensors_hold(child: "subprocess.Popen[str]", tmp_path: Path) -> None:
    sampler = sampler_of(tmp_path)
    sampler.suspend()
    try:
        child.kill()
        child.communicate(timeout=5)  # would wait for the pipe's end
        assert sampler.is_running()
    finally:
        sampler.resume()
    wait_for(lambda: is_gone(sampler), 5, "the sensors' process to end")


def test_a_killed_sampler_leaves_a_readable_file_and_a_note(tmp_path: Path) -> None:
    sidecar = start_sidecar(tmp_path, ALONE, "cpu", "", environment())
    wait_for(lambda: (tmp_path / "sensors-00000.jsonl").exists(), 10, "the first record")
    sampler_of(tmp_path).send_signal(signal.SIGKILL)
    recorder = Recorder(tmp_path / "rank-00000.jsonl", HEADER)
    sidecar.stop(recorder)
    recorder.close()
    assert read_rank_file(tmp_path / "sensors-00000.jsonl").header is not None
    (note,) = blocks_of(read_rank_file(tmp_path / "rank-00000.jsonl"), "sensor_note")
    assert note.reason == "the sensors' process ended with exit code -9"
    (file,) = read_sensors(tmp_path)
    assert file.garbage == []


def test_a_failure_is_a_record_and_the_file_of_another_run_stays(tmp_path: Path) -> None:
    (tmp_path / "sensors-00000.jsonl").write_text("another run's\n")
    sidecar = start_sidecar(tmp_path, ALONE, "cpu", "", environment())
    recorder = Recorder(tmp_path / "rank-00000.jsonl", HEADER)
    time.sleep(0.5)
    sidecar.stop(recorder)
    recorder.close()
    (note,) = blocks_of(read_rank_file(tmp_path / "rank-00000.jsonl"), "sensor_note")
    assert note.reason is not None
    assert "exit code 1: assay: error: " in note.reason
    assert "exists already" in note.reason
    assert (tmp_path / "sensors-00000.jsonl").read_text() == "another run's\n"


def test_sensors_can_be_switched_off_and_belong_to_the_first_rank_of_a_host(tmp_path: Path) -> None:
    start_sidecar(tmp_path, ALONE, "cpu", "", {"ASSAY_SENSORS": "off"}).stop(None)
    start_sidecar(tmp_path, Placement(1, 2, 1, 2, "none"), "cpu", "", {}).stop(None)
    start_sidecar(None, ALONE, "cpu", "", {}).stop(None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="ASSAY_SENSORS='of' should be 'on' or 'off'"):
        start_sidecar(tmp_path, ALONE, "cpu", "", {"ASSAY_SENSORS": "of"})


def test_ranks_under_torchrun_leave_one_file_a_host_and_no_process(tmp_path: Path) -> None:
    done = torchrun(
        2, "specs/limits.py", "--out", tmp_path, "--seconds", "0.05", "--gemm-size", "64", "--copy-bytes", "1MiB"
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("sensors-*")] == ["sensors-00000.jsonl"]
    assert processes_of(tmp_path) == []
    ranks = read_rank_file(tmp_path / "rank-00000.jsonl")
    (file,) = read_sensors(tmp_path)
    assert file.header is not None
    assert ranks.header is not None
    assert (file.header.world, file.header.script) == (2, "assay/sensors")
    assert file.header.clock_id == ranks.header.clock_id
    assert blocks_of(ranks, "sensor_note") == []
    (steal,) = pick(file.series, "cpu_steal")
    assert steal.times.size >= 2
    assert steal.times[-1] > ranks.blocks[-1].t_last, "the last reading comes when the work is done"


def planted(tmp_path: Path) -> Path:
    zone = tmp_path / "root/sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    (zone / "energy_uj").write_text("0\n")
    return zone / "energy_uj"


def test_energy_of_a_counter_that_really_rises_lies_within_its_bounds(tmp_path: Path) -> None:
    counter = os.open(planted(tmp_path), os.O_WRONLY)
    argv = [
        *command(tmp_path / "sensors-00000.jsonl", ALONE, "cpu", ""),
        f"--root={tmp_path / 'root'}",
        "--interval=0.2",
    ]
    with subprocess.Popen(argv, stdin=subprocess.PIPE):
        began = time.monotonic()
        wait_for(lambda: has_begun(tmp_path / "sensors-00000.jsonl"), 10, "the first record")
        time.sleep(0.2)
        ends = []
        for _ in range(2):
            for _ in range(90):
                moment = time.monotonic()
                told = int(200e6 * (moment - began))
                os.pwrite(counter, b"%015d\n" % told, 0)  # in one piece, as a kernel's file changes
                time.sleep(0.01)
            ends.append((moment, told / 1e6))
        time.sleep(0.3)
    (file,) = read_sensors(tmp_path)
    (series,) = pick(file.series, "energy", part="package")
    (begin, low), (end, high) = ends
    estimate, reason = energy_between(series, (begin, end))
    assert estimate is not None, reason
    assert estimate.low is not None
    assert estimate.high is not None
    late = 10.0  # J; a reading may be stamped, or the counter be written, some 50 ms late on a full machine
    assert estimate.low - late <= high - low <= estimate.high + late
    assert estimate.low <= estimate.value <= estimate.high


def test_without_a_power_sensor_the_file_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    out = tmp_path / "sensors-00000.jsonl"
    argv = [*command(out, ALONE, "cpu", ""), f"--root={tmp_path / 'root'}", "--interval=0.1"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE):
        wait_for(lambda: has_begun(out), 10, "the header")
    (power,) = blocks_of(read_rank_file(out), "power")
    assert np.isnan(power.samples).tolist() == [True]
    (file,) = read_sensors(tmp_path)
    assert file.no_power == power.reason
    assert file.no_power is not None
    assert file.no_power.startswith("no power sensor (nvml: ")


def test_by_hand_it_runs_until_interrupted(tmp_path: Path) -> None:
    out = tmp_path / "by hand.jsonl"
    argv = [sys.executable, "-m", "assay.sensors", "--out", str(out), "--interval", "0.1"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL) as process:
        wait_for(lambda: has_begun(out), 20, "the header")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0
    assert stamps(read_rank_file(out), "time").size >= 3


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    out = tmp_path / "sensors-00000.jsonl"
    argv = command(out, ALONE, "cpu", "")
    argv.insert(1, "-Ximporttime")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: has_begun(out), 20, "the header")
    imported = {line.rpartition("|")[2].strip() for line in process.communicate()[1].splitlines()}
    assert "assay.sensors.sampler" in imported
    assert not imported & {"numpy", "torch", "pydantic", "psutil", "asyncio", "site"}


class Slow:
    """A source that takes `seconds` for each reading."""

    period = 0.0
    about: dict[str, dict[str, str]] = {}  # noqa: RUF012 # never changed

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self._seconds = seconds
        self._gauge = Gauge("power", "W", {"device": name})

    def read(self) -> list[Reading]:
        time.sleep(self._seconds)
        return [(self._gauge, 1.0)]

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


class Broken(Slow):
    """A source whose second reading is an error."""

    _read = 0

    def read(self) -> list[Reading]:
        self._read += 1
        if self._read > 1:
            raise RuntimeError("the driver has gone")
        return super().read()


def test_a_slow_source_is_read_less_often_and_a_broken_one_no_more(tmp_path: Path) -> None:
    out = tmp_path / "sensors.jsonl"
    recorder = Recorder(out, HEADER)
    until = time.monotonic() + 1.5

    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        return time.monotonic() > until

    sample([Slow("quick", 0.0), Broken("broken", 0.0), Slow("slow", 0.12)], recorder, 0.05, wait, lambda: "none")
    recorder.close()
    read = read_rank_file(out)
    assert stamps(read, "slow").size <= 4  # every 1.2 s, and once more at the end
    assert stamps(read, "quick").size >= 15
    assert stamps(read, "broken").size == 1
    (note,) = blocks_of(read, "sensor_note")
    assert note.reason == "broken: RuntimeError: the driver has gone; it is read no more"


def test_a_source_that_hangs_is_ended_by_the_kernel(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from assay.recorder import Recorder
from assay.sensors import sampler
from tests.test_sensors_process import HEADER, Slow
sampler.HANG = 1
sampler.sample([Slow("hanging", 60)], Recorder(Path({str(tmp_path / "s.jsonl")!r}), HEADER), 1.0, lambda s: False, str)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), timeout=30, check=False)
    assert done.returncode == -signal.SIGALRM


def test_every_series_has_a_stamp_for_each_sample(tmp_path: Path) -> None:
    script = tmp_path / "tool.sh"
    # A device that appears late and one that falls silent.
    script.write_text(
        """#!/bin/sh
echo '{"device": "early", "power": 1}'; sleep 0.4; echo '{"device": "late", "power": 2}'; sleep 60\n"""
    )
    script.chmod(0o755)
    out = tmp_path / "sensors-00000.jsonl"
    argv = [*command(out, ALONE, "cpu", ""), "--interval=0.05"]
    environ = {**environment(), "ASSAY_SENSOR_COMMAND": str(script)}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, env=environ):
        wait_for(lambda: has_begun(out), 10, "the header")
        time.sleep(1.0)
    for line in out.read_text().splitlines()[1:]:
        block = json.loads(line)
        if None in block["samples"]:
            assert block["reason"]
    (file,) = read_sensors(tmp_path)
    (late,) = (one for one in pick(file.series, "power") if one.device == "late")
    (early,) = (one for one in pick(file.series, "power") if one.device == "early")
    assert (late.values.tolist(), early.values.tolist()) == ([2.0], [1.0])
    assert 0.3 < late.times[0] - early.times[0] < 0.9
    assert not processes_of(script)


def test_the_ranks_priority_is_higher(child: "subprocess.Popen[str]", tmp_path: Path) -> None:
    assert sampler_of(tmp_path).nice() == os.getpriority(os.PRIO_PROCESS, child.pid) + 10
