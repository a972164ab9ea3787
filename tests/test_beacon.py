"""The beacon and what is told from it: pure sentences, and files of dead and stopped processes."""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.beacon import (
    ENDED,
    Beacon,
    Reading,
    diagnose,
    name_ranks,
    open_beacon,
    process_states,
    read_beacons,
)
from assay.errors import RunFailed
from tests.conftest import wait_for

KIB4 = Reading(0, 4, 100, "here", 5, 15, False, "all_reduce", 4096, "call by call")  # inside iteration 7


def ranks(**changed: dict[str, object]) -> list[Reading]:
    """Four ranks inside iteration 7, but for what is changed: r1={"cell": 14}."""
    return [replace(KIB4, rank=rank, pid=100 + rank, **changed.get(f"r{rank}", {})) for rank in range(4)]  # type: ignore[arg-type] # by keyword


def sentence(
    readings: list[Reading], states: dict[int, str] | None = None, earlier: list[Reading] | None = None
) -> str:
    found = diagnose(readings, states or {}, 60.0, earlier or [])
    assert found is not None
    return found.sentence


def one(beacon: Beacon) -> Reading:
    (reading,) = read_beacons(beacon.folder)
    return reading


def test_what_a_rank_tells_can_be_read_at_once(tmp_path: Path) -> None:
    beacon = open_beacon(tmp_path, 3, 4)
    assert (one(beacon).phases, one(beacon).place, one(beacon).pid) == (0, "start-up", os.getpid())
    beacon.phase("all_reduce", 4096, "call by call")
    assert one(beacon).place == "all_reduce of 4KiB, call by call, before iteration 0"
    beacon.cell[0] = 2 * 7 + 1
    assert (one(beacon).inside, one(beacon).place) == (True, "all_reduce of 4KiB, call by call, iteration 7")
    beacon.cell[0] = 2 * 7 + 2
    assert (one(beacon).inside, one(beacon).place) == (False, "all_reduce of 4KiB, call by call, before iteration 8")
    before = one(beacon)
    beacon.phase("barrier", 0, "warm-up")
    assert one(beacon).place == "barrier, warm-up, before iteration 0"
    assert one(beacon).position > before.position, "a new phase is further than any iteration of the last"
    beacon.phase("", 0, "the end")
    assert one(beacon).place == "the end"


@given(st.text(max_size=100), st.text(max_size=100))
def test_any_text_fits_its_field(op: str, phase: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        beacon = open_beacon(Path(folder), 0, 1)
        beacon.phase(op.replace("\0", ""), 2**40, phase.replace("\0", ""))
        beacon.cell[0] = 1
        reading = one(beacon)
        assert reading.size == 2**40
        assert op.replace("\0", "").startswith(reading.op.rstrip("\ufffd"))


def test_the_beacon_of_a_killed_rank_says_where_it_was(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from assay.beacon import open_beacon\n"
        "b = open_beacon(Path(sys.argv[1]), 0, 2); b.phase('broadcast', 1024, 'warm-up'); b.cell[0] = 7\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    readings = read_beacons(tmp_path)
    assert [reading.place for reading in readings] == ["broadcast of 1KiB, warm-up, iteration 3"]
    assert process_states(readings) == {0: ENDED}
    assert "rank 0 is no longer alive, nothing is known of rank 1" in sentence(readings, process_states(readings))


def test_foreign_and_torn_files_are_left_out(tmp_path: Path) -> None:
    open_beacon(tmp_path, 1, 4).phase("reduce", 8, "check")
    whole = (tmp_path / "beacon-00001.bin").read_bytes()
    (tmp_path / "beacon-00000.bin").write_bytes(b"")
    (tmp_path / "beacon-00002.bin").write_bytes(whole)  # another rank's
    (tmp_path / "beacon-00003.bin").write_bytes(b"\0" * len(whole))
    (tmp_path / "beacon-00004.bin").write_bytes(whole[:-1])
    (tmp_path / "beacon-00005.bin").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    assert [reading.rank for reading in read_beacons(tmp_path)] == [1]
    assert read_beacons(tmp_path / "absent") == []


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"absent/beacon-00000.bin: no such file or directory; make room there"):
        open_beacon(tmp_path / "absent", 0, 1)


def test_states_come_from_the_kernel_and_only_of_this_hosts_ranks(tmp_path: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        open_beacon(tmp_path, 0, 2)
        reading = replace(read_beacons(tmp_path)[0], pid=sleeper.pid)
        sleeper.send_signal(signal.SIGSTOP)
        wait_for(lambda: process_states([reading]) == {0: psutil.STATUS_STOPPED}, 5, "the stop")
        assert process_states([reading], alive=[]) == {0: ENDED}, "another process may have its number by now"
        assert process_states([replace(reading, host="elsewhere")]) == {}
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_sentence_names_who_never_entered() -> None:
    head = "no progress for 60 s in all_reduce of 4KiB, call by call, iteration 7: "
    last = "last seen in all_reduce of 4KiB, call by call, "
    assert sentence(ranks(r2={"cell": 14})) == (
        head + f"rank 2 never entered it ({last}before iteration 7), ranks 0, 1 and 3 are inside"
    )
    assert sentence(ranks(r1={"cell": 13}, r2={"cell": 14})) == (
        head + f"ranks 1 and 2 never entered it (the hindmost {last}iteration 6), ranks 0 and 3 are inside"
    )
    assert sentence(ranks(r0={"phases": 6, "cell": 1, "op": "gather"})).startswith(
        "no progress for 60 s in gather of 4KiB, call by call, iteration 0: ranks 1, 2 and 3 never entered it"
    ), "a later phase is further than any iteration"


def test_the_sentence_names_stopped_ended_and_unknown_ranks() -> None:
    head = "no progress for 60 s in all_reduce of 4KiB, call by call, iteration 7: "
    stopped = {0: "sleeping", 1: psutil.STATUS_STOPPED, 2: "running", 3: "sleeping"}
    assert sentence(ranks(), stopped) == head + "all 4 ranks are inside, rank 1 is stopped (SIGSTOP)"
    assert sentence(ranks(), {2: ENDED, 3: ENDED}) == head + "all 4 ranks are inside, ranks 2 and 3 are no longer alive"
    assert sentence(ranks()[:2]) == head + "ranks 0 and 1 are inside, nothing is known of ranks 2 and 3"
    assert sentence(ranks(r3={"phases": 0, "cell": 0})) == (
        head + "rank 3 never entered it (last seen in start-up), ranks 0, 1 and 2 are inside"
    )


def test_between_calls_and_after_the_end_nobody_is_called_inside() -> None:
    outside = [replace(reading, cell=16) for reading in ranks()]
    assert sentence(outside).endswith("call by call, before iteration 8: all 4 ranks came there")
    ended = ranks(r0={"phases": 6, "cell": 0, "op": "", "phase": "the end"})
    assert sentence(ended).startswith("no progress for 60 s in the end: ranks 1, 2 and 3 never came there (")


def test_who_moves_does_not_hang() -> None:
    earlier = ranks(r0={"cell": 13})
    now = ranks(r3={"cell": 14})
    assert sentence(now, {}, earlier).startswith(
        "still moving in all_reduce of 4KiB, call by call, iteration 7: rank 3 is not"
    )
    assert sentence(now, {}, now).startswith("no progress for 60 s in")
    assert diagnose([], {}, 1.0) is None
    assert diagnose([replace(reading, phases=0) for reading in ranks()], {}, 1.0) is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=64))
def test_every_rank_is_in_exactly_one_place(cells: list[int]) -> None:
    readings = [replace(KIB4, rank=rank, world=len(cells) + 2, cell=cell) for rank, cell in enumerate(cells)]
    found = diagnose(readings, {}, 1.0)
    assert found is not None
    assert sorted(found.inside + found.outside + found.behind + found.unknown) == list(range(len(cells) + 2))
    assert all(cells[rank] == max(cells) for rank in found.inside + found.outside)
    assert all(cells[rank] < max(cells) for rank in found.behind)


def test_many_ranks_are_counted() -> None:
    assert name_ranks(range(2, 60), 64) == "ranks 2, 3, 4, 5, 6, 7, 8, 9 and 50 more"
    assert name_ranks(range(2, 10), 64) == "ranks 2, 3, 4, 5, 6, 7, 8 and 9"
    assert name_ranks([0, 1], 2) == "both ranks"
    assert (name_ranks([0], 1), name_ranks(range(64), 64)) == ("rank 0", "all 64 ranks")
