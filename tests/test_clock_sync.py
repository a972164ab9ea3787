"""Real ranks: clocks that were shifted are found, and a rank that is late on purpose is named whatever its clock says."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.clock_sync import Alignment
from assay.record import Header, RankFile, read_rank_file
from assay.recorder import Recorder
from assay.scoring.arrival import call_times, late_ranks, probes_of, read_calls
from assay.world import World
from tests.conftest import ROOT, environment, free_port
from tests.ranks_arrival import OPS

SHIFT = 1000.0
LATE = 0.02
# A time namespace of its own, for one rank; anybody may have one inside a user namespace.
SHIFTED = ["unshare", *(["--map-root-user"] if os.geteuid() else []), "--time", f"--monotonic={SHIFT:.0f}"]
SHIFTED += ["--fork", "--kill-child"]


def run_ranks(out: Path, world: int, *args: str, shifted: int | None = None) -> list[RankFile]:
    """tests/ranks_arrival.py with `world` ranks, the clock of one of them shifted: what they have recorded."""
    address = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = []
    try:
        for rank in range(world):
            argv = [sys.executable, str(ROOT / "tests/ranks_arrival.py"), str(out), *args]
            env = environment(**address, RANK=str(rank), PYTHONPATH=str(ROOT), ASSAY_SENSORS="off")
            ranks.append(subprocess.Popen([*(SHIFTED if rank == shifted else []), *argv], env=env))
        assert [process.wait(timeout=600) for process in ranks] == [0] * world
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [read_rank_file(out / f"rank-{rank:05d}.jsonl") for rank in range(world)]


def measured(files: list[RankFile]) -> list[Mapping[str, Any]]:
    """The tags of every measurement, in order."""
    found = {repr(block.tags): block.tags for block in files[0].blocks if block.metric == "call_entry"}
    return list(found.values())


def named(files: list[RankFile]) -> dict[tuple[str, int], int]:
    """(op, trial) → the rank that is called late."""
    found = late_ranks(files, measured(files))
    return {(str(item.tags["op"]), int(item.tags["trial"])): item.late.rank for item in found}


def made_late(files: list[RankFile], clean: int = 0) -> dict[tuple[str, int], int]:
    """(op, trial) → the rank that slept, as tests/ranks_arrival.py chooses it; nobody in the first `clean` trials."""
    everything = {(str(tags["op"]), int(tags["trial"])) for tags in measured(files)}
    return {(op, trial): trial % (2 if op == "pt2pt" else len(files)) for op, trial in everything if trial >= clean}


def longest_duration(files: list[RankFile], tags: Mapping[str, Any]) -> int:
    """The rank with the longest median duration: whom a ranking by duration blames. It needs no common clock."""
    calls = read_calls(files, tags)
    assert calls is not None
    return calls.ranks[int(np.argmax(np.median(calls.exits - calls.entries, axis=1)))]


def check_late(files: list[RankFile], shifted: int, clean: int = 0) -> None:
    """Every late rank is named and no other, though a clock was shifted. A ranking by duration names another each time."""
    culprits = made_late(files, clean)
    assert named(files) == culprits
    ranked = {(str(tags["op"]), int(tags["trial"])): longest_duration(files, tags) for tags in measured(files)}
    assert [key for key, rank in culprits.items() if ranked[key] == rank] == []
    for rank, file in enumerate(files):
        assert len(probes_of(file)) >= 2
        for probe in probes_of(file):
            assert abs(probe.offset - (SHIFT if rank == shifted else 0)) <= probe.error < LATE / 4


def test_a_late_rank_is_named_for_every_op_and_nobody_before_it_was_late(tmp_path: Path) -> None:
    """Three ranks, the second with a shifted clock: first nobody is late, then this one."""
    files = run_ranks(tmp_path, 3, "--late", str(LATE), "--trials", "2", "--clean", "1", "--calls", "12", shifted=1)
    check_late(files, shifted=1, clean=1)
    assert {op for op, _ in made_late(files, clean=1)} == set(OPS)
    # Without the offsets of the clocks, nothing may be said about who came when.
    dumb = [RankFile(f.path, f.header, [b for b in f.blocks if b.metric != "clock_offset"], [], False) for f in files]
    assert named(dumb) == {}
    assert call_times(dumb, measured(dumb)[0])[1] == "longest over ranks, waiting included"


def test_ranks_with_one_clock_have_nothing_to_ask_each_other() -> None:
    world = World(0, 4, 0, 4, "gloo", ("a",) * 4, True, ("boot",) * 4)
    header = Header(0, 4, 0, 4, "a", 1, "boot", "cpu", "cpu", "gloo", "test", 0.0, 0.0)
    clocks = Alignment(world, Recorder(None, header))  # its channel would refuse to send
    clocks.refresh()
    assert clocks.error == 0
    assert list(clocks.to_first([1.0, 2.0])) == [1.0, 2.0]
    times, how = clocks.call_times([1.0, 2.0], [1.5, 2.25])
    assert (list(times), how) == ([0.5, 0.25], "last entry to last exit")


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_late_rank_is_named_in_20_of_20_trials(tmp_path: Path) -> None:
    """Four ranks on what cores there are; each in turn is late in five trials of every op, one with a shifted clock."""
    files = run_ranks(tmp_path, 4, "--late", str(LATE), "--trials", "20", "--calls", "12", shifted=2)
    assert len(measured(files)) == 20 * len(OPS)
    check_late(files, shifted=2)


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("world", "shifted"), [(2, None), (4, None), (2, 1), (4, 1)])
def test_nobody_is_blamed_in_100_clean_runs(tmp_path: Path, world: int, shifted: int | None) -> None:
    """A run is every op once, measured anew with barriers and probes of its own; 25 of them share their processes."""
    for launch in range(4):
        out = tmp_path / str(launch)
        files = run_ranks(out, world, "--trials", "25", "--calls", "12", shifted=shifted)
        assert len(measured(files)) == 25 * len(OPS)
        assert named(files) == {}
