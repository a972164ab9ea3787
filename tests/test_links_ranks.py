"""Links on real ranks, and on real hosts of which one is slowed down; the list of hosts to exclude."""

import os
import re
import subprocess
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import psutil
import pytest

from assay.errors import RunFailed
from assay.links.exclusion import clear, exclude, exclusion
from assay.links.matrix import BOTH_WAYS, ONE_WAY
from assay.links.survey import BISECTION, MATRIX, Survey
from assay.links.verdict import Verdict, sentences
from assay.record import Block, RankFile
from assay.report.heatmap import HeatMap
from assay.report.links import links_chapter
from assay.scoring.links import derive, doubts, survey
from tests.cluster.network import Host, lab, limit, run_ranks
from tests.conftest import ROOT, mpirun, rank_files, torchrun


def named(found: Verdict) -> set[tuple[int, ...]]:
    return {tuple(sorted(group[0].suspect.ranks)) for group in found.named}


def verdict_lines(printed: str) -> list[str]:
    return [line.removeprefix("# ") for line in printed.splitlines() if " is slow" in line or " link is " in line]


QUICK = ("--sizes", "8,64KiB", "--passes", "2", "--transfers", "3", "--budget", "0.02")


def test_four_healthy_ranks(tmp_path: Path) -> None:
    out = tmp_path / "records"
    done = torchrun(4, "comms/links.py", *QUICK, "--out", out)
    assert done.returncode == 0, done.stderr
    (told,) = verdict_lines(done.stdout)
    assert re.match(r"no rank and no link is (slow|named) among 4\.", told)
    assert (out / "exclude.txt").read_text() == ""
    assert f"# to exclude: nobody; {out}/exclude.txt is empty" in done.stdout
    files = rank_files(out)
    figures, _ = derive(files, {}, [])
    one_way = {(f.tags["from"], f.tags["to"]) for f in figures if f.metric == "pair_rate" and f.tags["ways"] == ONE_WAY}
    assert one_way == {(a, b) for a in range(4) for b in range(4) if a != b}
    assert sum(f.metric == "pair_latency" and f.tags["ways"] == BOTH_WAYS for f in figures) == 6
    assert sum(f.metric == "bisection_rate" for f in figures) == 4
    for figure in figures:
        assert figure.value == 0 if figure.metric == "check_errors" else (figure.value or 0) > 0, figure
    # Every element was looked at once for each direction of each pair.
    blocks = [block for file in files for block in file.blocks]
    checks = [block for block in blocks if block.metric == "check_errors"]
    assert sum(len(block.samples) for block in checks if block.tags["phase"] == MATRIX) == 2 * 2 * 3 * 4 * 2
    # Killed in the bisection, what came before would be known to be right, and the rest to be unchecked.
    before = [
        replace(file, blocks=list(takewhile(lambda block: block.tags.get("phase") != BISECTION, file.blocks)))
        for file in files
    ]
    assert [(f.value, f.reason) for f in derive(before, {}, [])[0] if f.metric == "check_errors"] == [(0, None)] * 2
    unchecked = [
        replace(file, blocks=[b for b in file.blocks if b.metric != "check_errors" or b.tags["phase"] != BISECTION])
        for file in files
    ]
    checked = [(f.value, f.reason) for f in derive(unchecked, {}, [])[0] if f.metric == "check_errors"]
    assert checked == [(0, None), (None, "4 of 4 ranks recorded no check of phase bisection")]
    # What was said about the size of the records holds.
    (most,) = re.findall(r"each rank logs ([\d.]+) MB at most", done.stdout)
    assert max(path.stat().st_size for path in out.glob("rank-*.jsonl")) < float(most) * 1e6
    # A report is made of the records alone, with the same verdict.
    found = survey(files, {})
    assert found is not None
    assert sentences(found.verdict)[0] == told.rstrip(".")
    assert doubts(found) == []
    chapter = links_chapter([("case", found)])
    assert [type(chart) for chart in chapter.parts[0].charts] == [HeatMap] * 4


def test_lanes_are_told_apart_in_records() -> None:
    pairs = [(a, b) for lane in ((0, 3, 5), (1, 2, 4)) for a in lane for b in lane if a != b]
    blocks = [
        Block(
            "pair_time",
            "s",
            np.array([1.0]),
            {"from": a, "to": b, "bytes": 8, "ways": "one", "phase": MATRIX, "pass": 0},
        )
        for a, b in reversed(pairs)
    ]
    found = survey([RankFile(Path("rank-00000.jsonl"), None, blocks, [], False)], {})
    assert found is not None
    assert [measured.ranks for measured in found.matrices] == [(0, 3, 5), (1, 2, 4)]


SPOIL = f"""
import runpy
from assay.transports.mpi import MpiTransport
from assay.transports.protocol import Bound

faultless = MpiTransport.send

def faulty(self, buffer, to):
    bound = faultless(self, buffer, to)

    def call():
        buffer[-1] += 1
        bound.call()
        buffer[-1] -= 1

    return Bound(call, bound.start) if self.rank == 1 and buffer.numel() > 1 else bound

MpiTransport.send = faulty
runpy.run_path({str(ROOT / "comms/links.py")!r}, run_name="__main__")
"""


def test_over_mpi_a_rank_that_spoils_what_it_sends_is_told(tmp_path: Path) -> None:
    (tmp_path / "spoil.py").write_text(SPOIL)
    out = tmp_path / "records"
    done = mpirun(2, str(tmp_path / "spoil.py"), "--transport", "mpi", *QUICK, "--no-bisection", "--out", out)
    assert done.returncode != 0
    assert "there is one pair only, so nothing to compare it with" in done.stdout
    assert "elements were wrong after their transfer; trust no figure of this run" in done.stderr
    wrong = [block for file in rank_files(out) for block in file.blocks if block.metric == "check_errors"]
    # Two passes of two sizes; what both send at once goes another way and is right.
    spoiled = [block for block in wrong if block.samples.any()]
    assert {(block.tags["from"], block.tags["to"], block.tags["ways"]) for block in spoiled} == {(1, 0, ONE_WAY)}
    figures, _ = derive(rank_files(out), {}, [])
    assert {f.tags["backend"] for f in figures} == {"mpi4py"}
    assert [f.value for f in figures if f.metric == "check_errors"] == [2, 2]
    assert sum(f.metric == "pair_rate" for f in figures) == 3


# --- The list of hosts to exclude


def test_the_exclude_list_is_what_sbatch_takes() -> None:
    assert exclusion(["node3", "node7"]) == "node3,node7\n"
    assert exclusion([]) == ""


def test_the_list_of_an_earlier_run_does_not_survive(tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    path.write_text("node9\n")
    assert clear(path) == ""
    assert not path.exists()
    assert exclude(path, []) == f"to exclude: nobody; {path} is empty"
    assert exclude(None, ["node3"]).startswith("to exclude: node3; --exclude-file FILE")
    nowhere = tmp_path / "nowhere" / "exclude.txt"
    assert clear(nowhere) == f"--exclude-file {nowhere}: cannot be written (no such file or directory); give another"
    with pytest.raises(RunFailed, match=r"cannot be written \(.*\); to exclude: node3,node7; all else was measured"):
        exclude(nowhere, ["node3", "node7"])


def test_what_is_no_regular_file_is_neither_opened_nor_removed(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("pipe", "link", "folder")]
    os.mkfifo(places[0])
    places[1].symlink_to("/dev/null")
    places[2].mkdir()
    for place in places:
        assert clear(place).startswith(f"--exclude-file {place}: is no regular file")
    assert sorted(tmp_path.iterdir()) == sorted(places)


def test_a_list_that_cannot_be_written_is_said_once_and_before_anything_is_measured(tmp_path: Path) -> None:
    done = torchrun(3, "comms/links.py", *QUICK, "--exclude-file", tmp_path / "nowhere" / "x")
    told = [line for line in done.stderr.splitlines() if line.startswith("assay: error: ")]
    assert (done.returncode != 0, len(told), done.stdout) == (True, 1, "")
    assert "cannot be written (no such file or directory); give another" in told[0]
    assert "Connection closed" not in done.stderr


# --- Real hosts: network namespaces, one of them behind a token bucket

TRIAL = ("--sizes", "8,256KiB", "--passes", "2", "--transfers", "4", "--budget", "0.05", "--no-bisection")


def run_trial(folder: Path, slow: int | None) -> tuple[str, Survey]:
    """Four hosts, one of which sends at 200 Mbit/s."""
    with lab(4) as hosts:
        if slow is not None:
            limit(hosts[slow], "200mbit")
        done = run_ranks(hosts, "comms/links.py", *TRIAL, "--out", folder)
    assert [one.returncode for one in done] == [0] * 4, "".join(one.stderr for one in done)
    found = survey(rank_files(folder), {})
    assert found is not None
    return done[0].stdout, found


def test_a_throttled_host_is_named_and_excluded(tmp_path: Path) -> None:
    printed, found = run_trial(tmp_path, slow=2)
    (told,) = verdict_lines(printed)
    assert told.startswith("rank 2 on host2 is slow: it sends 256KiB at 0.")
    assert "receives 256KiB" not in told
    assert (tmp_path / "exclude.txt").read_text() == "host2\n"
    assert f"# to exclude: host2; sbatch --exclude=$(cat {tmp_path}/exclude.txt)" in printed
    assert [kind for kind, _, _ in doubts(found)] == ["slow_rank"]


def test_the_lab_is_gone_after_a_failure() -> None:
    known: list[Host] = []

    def fail() -> None:
        with lab(2) as hosts:
            known.extend(hosts)
            assert all(host.on for host in hosts)
            name = subprocess.run(hosts[0].inside(["hostname"]), capture_output=True, check=True).stdout
            raise KeyError(name)

    with pytest.raises(KeyError, match="host0"):
        fail()
    assert not any(host.on or psutil.pid_exists(host.switch) for host in known)


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_a_throttled_host_is_named_in_ten_of_ten(tmp_path: Path) -> None:
    told = []
    for trial in range(10):
        _, found = run_trial(tmp_path / str(trial), slow=trial % 4)
        told.append(named(found.verdict))
    assert told == [{(trial % 4,)} for trial in range(10)]


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_nobody_is_named_in_ten_clean_runs(tmp_path: Path) -> None:
    told = []
    for trial in range(10):
        _, found = run_trial(tmp_path / f"hosts-{trial}", slow=None)
        told.append(named(found.verdict))
        done = torchrun(4, "comms/links.py", *TRIAL, "--out", tmp_path / f"ranks-{trial}")
        assert done.returncode == 0, done.stderr
        again = survey(rank_files(tmp_path / f"ranks-{trial}"), {})
        assert again is not None
        told.append(named(again.verdict))
    assert told == [set()] * 20
