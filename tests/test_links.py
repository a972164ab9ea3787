"""Links: the tournament, who is named in made-up times, the heat map, and real hosts of which one is slowed down."""

import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from assay.errors import BadInput
from assay.links.bisection import Crossing, crossing, slower_half
from assay.links.exclusion import clear, exclude, exclusion
from assay.links.faults import CONFIRM_PASSES, CONFIRM_TRANSFERS
from assay.links.matrix import BOTH_WAYS, ONE_WAY
from assay.links.rounds import Pair, cuts, lanes, rounds
from assay.links.survey import CONFIRM, MATRIX, Limits, Survey, condensed, matrices, suspects, verdict
from assay.links.verdict import Verdict, sentences
from assay.options.base import validate
from assay.options.links import LinksOptions
from assay.record import RankFile, read_rank_file
from assay.report.heatmap import MOST_CELLS, HeatMap
from assay.report.links import links_chapter
from assay.scoring.links import derive, doubts, survey
from tests.conftest import ROOT, mpirun, torchrun
from tests.netlab import Host, lab, limit, run_ranks

SVG = "{http://www.w3.org/2000/svg}"
LIMITS = Limits(0.7, 3.0)
SIZE = 1 << 20


# --- Who talks to whom


@given(st.integers(2, 40))
def test_rounds_hold_every_pair_once_and_nobody_twice(count: int) -> None:
    schedule = rounds(count)
    assert len(schedule) == (count - 1 if count % 2 == 0 else count)
    met = [pair for one in schedule for pair in one]
    assert sorted(met) == [(a, b) for a in range(count) for b in range(a + 1, count)]
    for one in schedule:
        busy = [end for pair in one for end in pair]
        assert len(set(busy)) == len(busy) == count - count % 2


@given(st.integers(2, 70))
def test_cuts_part_every_two_ends_at_least_once(count: int) -> None:
    found = cuts(count)
    assert len(found) == (count - 1).bit_length()
    assert abs(len(found[0].first) - len(found[0].second)) <= 1
    apart = set()
    for cut in found:
        assert sorted((*cut.first, *cut.second)) == list(range(count))
        assert len({end for pair in cut.pairs for end in pair}) == 2 * len(cut.pairs)
        apart |= {(min(a, b), max(a, b)) for a in cut.first for b in cut.second}
    assert len(apart) == count * (count - 1) // 2


def test_who_talks_for_a_host() -> None:
    hosts = ["a", "a", "b", "b", "c", "c"]
    assert lanes(hosts, "auto", "one") == [(0, 2, 4)]
    assert lanes(hosts, "hosts", "all") == [(0, 2, 4), (1, 3, 5)]
    assert lanes(hosts, "ranks", "one") == [(0, 1, 2, 3, 4, 5)]
    assert lanes(["a", "a", "a"], "auto", "one") == [(0, 1, 2)]
    with pytest.raises(BadInput, match="--between hosts: all ranks are on a; start them on several hosts"):
        lanes(["a", "a"], "hosts", "one")
    with pytest.raises(BadInput, match="--per-host all: hosts have 1 to 2 ranks"):
        lanes(["a", "a", "b"], "hosts", "all")
    with pytest.raises(BadInput, match="--per-host all: goes with --between hosts"):
        lanes(["a", "a"], "auto", "all")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"sizes": "8,6"}, "--sizes: expected sizes that are a multiple of 4 bytes, got 6"),
        ({"sizes": "8,8"}, "--sizes: 8 is there twice; keep one"),
        ({"sizes": ""}, "--sizes: expected one size or more"),
        ({"threshold": "1.5"}, "--threshold: input should be less than 1"),
        ({"between": "racks"}, "--between: input should be 'auto', 'hosts' or 'ranks'"),
    ],
)
def test_bad_options_are_one_sentence(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        validate(LinksOptions, given)


# --- Who is named. Times are made up from the true speed of each direction.


def drawn(
    speeds: NDArray[np.float64], hosts: Sequence[str], noise: float, seed: int, sizes: Sequence[int] = (SIZE,)
) -> Verdict:
    """The verdict on pairs whose true speeds (relative to 1 GB/s) are `speeds`, measured as comms/links.py does."""
    random = np.random.default_rng(seed)
    everyone = range(len(hosts))

    def times(pair: Pair, size: int, ways: str) -> list[float]:
        speed = min(speeds[pair], speeds[pair[::-1]]) if ways == BOTH_WAYS else speeds[pair]
        return [size / 1e9 / speed * float(factor) for factor in random.lognormal(0, noise, 6)]

    samples = {
        (MATRIX, size, ways, -1, number, pair): times(pair, size, ways)
        for size in sizes
        for ways in (ONE_WAY, BOTH_WAYS)
        for number in range(3)
        for pair in ((a, b) for a in everyone for b in everyone if a != b and (ways == ONE_WAY or a < b))
    }
    names = dict(enumerate(hosts))
    measured = matrices([list(everyone)], names, condensed(samples))
    again = suspects(measured, LIMITS)[1]
    for number in range(CONFIRM_PASSES):
        for one in again:
            for pair in (*one.edges, *one.controls):
                key = (CONFIRM, one.bytes, one.ways, -1, number, pair)
                samples[key] = times(pair, one.bytes, one.ways)[:CONFIRM_TRANSFERS]
    return verdict(measured, LIMITS, condensed(samples))


def named(found: Verdict) -> set[tuple[int, ...]]:
    return {tuple(sorted(group[0].suspect.ranks)) for group in found.named}


def distinct(count: int) -> list[str]:
    return [f"node{number}" for number in range(count)]


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(3, 12),
    seed=st.integers(0, 2**32),
    slowness=st.floats(0.02, 0.45),
    does=st.sampled_from(["sends", "receives", "both"]),
    data=st.data(),
)
def test_a_slow_rank_is_named_with_what_it_does_slowly(
    count: int, seed: int, slowness: float, does: str, data: st.DataObject
) -> None:
    culprit = data.draw(st.integers(0, count - 1))
    speeds = np.ones((count, count))
    if does != "receives":
        speeds[culprit] *= slowness
    if does != "sends":
        speeds[:, culprit] *= slowness
    found = drawn(speeds, distinct(count), 0.05, seed)
    assert named(found) == {(culprit,)}
    assert found.slow_ranks == [culprit]
    told = sentences(found)[0]
    assert told.startswith(f"rank {culprit} on node{culprit} is slow: it ")
    assert ("sends 1MiB at" in told, "receives 1MiB at" in told) == (does != "receives", does != "sends")
    ratio = found.named[0][0].ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(slowness, rel=0.3)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(3, 12), seed=st.integers(0, 2**32), slowness=st.floats(0.02, 0.45), data=st.data())
def test_a_slow_link_is_named_and_not_its_ends(count: int, seed: int, slowness: float, data: st.DataObject) -> None:
    sender, receiver = data.draw(st.permutations(range(count)))[:2]
    speeds = np.ones((count, count))
    speeds[sender, receiver] = slowness
    if data.draw(st.booleans()):
        speeds[receiver, sender] = slowness
    found = drawn(speeds, distinct(count), 0.05, seed)
    assert named(found) == {tuple(sorted((sender, receiver)))}
    assert found.slow_ranks == [], "the hosts of a slow link are well with others"
    assert sentences(found)[0].startswith("the link between rank ")
    assert f"from {sender} to {receiver} at" in sentences(found)[0]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 12), seed=st.integers(0, 2**32), noise=st.floats(0, 0.3))
def test_noise_names_nobody(count: int, seed: int, noise: float) -> None:
    found = drawn(np.ones((count, count)), distinct(count), noise, seed, sizes=(8, SIZE))
    assert named(found) == set()
    first = "there is one pair only" if count == 2 else "no rank and no link is "
    assert sentences(found)[0].startswith(first)


def test_several_slow_ranks_and_a_link_are_told_apart() -> None:
    speeds = np.ones((9, 9))
    speeds[2] = speeds[:, 5] = 0.3
    speeds[7, 8] = speeds[8, 7] = 0.1
    assert named(drawn(speeds, distinct(9), 0.05, 1)) == {(2,), (5,), (7, 8)}


def test_a_link_far_slower_than_its_slow_end_is_named_too() -> None:
    speeds = np.ones((6, 6))
    speeds[2] = 0.4
    speeds[2, 4] = 0.01
    assert named(drawn(speeds, distinct(6), 0.05, 1)) == {(2,), (2, 4)}


def test_pairs_within_a_host_are_held_against_their_like() -> None:
    hosts = [f"node{rank // 4}" for rank in range(16)]
    near = np.array(hosts)[:, None] == np.array(hosts)
    speeds = np.where(near, 20.0, 1.0)
    assert named(drawn(speeds, hosts, 0.05, 1)) == set()
    speeds[6] = np.where(near[6], 20.0, 0.3)  # its network card, and not what it shares with its neighbours
    assert named(drawn(speeds, hosts, 0.05, 1)) == {(6,)}


def test_an_uneven_network_blames_no_link() -> None:
    racks = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    found = drawn(np.where(racks[:, None] == racks, 1.0, 0.4), distinct(8), 0.02, 1)
    assert named(found) == set()
    assert "too many to be single links: the network is uneven or busy" in " ".join(sentences(found))


def test_latency_is_judged_by_its_own_factor() -> None:
    for slowness, blamed in ((0.5, set()), (0.2, {(3,)})):
        speeds = np.ones((6, 6))
        speeds[3] = slowness
        found = drawn(speeds, distinct(6), 0.05, 1, sizes=(8,))
        assert named(found) == blamed
    assert "rank 3 on node3 is slow: it sends 8B with 5" in sentences(found)[0]
    assert "times the usual latency" in sentences(found)[0]


def test_a_suspect_that_was_not_measured_again_is_not_named() -> None:
    speeds = np.ones((5, 5))
    speeds[1] = 0.1
    samples = {(MATRIX, SIZE, ONE_WAY, -1, 0, (a, b)): [1 / speeds[a, b]] for a in range(5) for b in range(5) if a != b}
    measured = matrices([range(5)], dict(enumerate(distinct(5))), condensed(samples))
    found = verdict(measured, LIMITS, condensed(samples))
    assert named(found) == set()
    assert "rank 1 on node1 looks slow, but it was not measured again; not named" in sentences(found)


# --- Bisection


def test_the_slower_half_is_known_where_the_directions_differ() -> None:
    pairs = [(0, 2), (1, 3)]
    halves = (("a", "b"), ("c", "d"))

    def direction(seconds: Mapping[Pair, float]) -> Crossing:
        loaded = {(number, pair): seconds[pair] * (1 + 0.01 * number) for number in range(6) for pair in seconds}
        found = crossing(0, halves, list(seconds), 1000, loaded, {(0, pair): 0.5 for pair in seconds})
        assert found is not None
        return found

    there = direction({(0, 2): 1.0, (1, 3): 4.0})
    back = direction({(2, 0): 1.0, (3, 1): 1.0})
    assert there.rate.value == pytest.approx(1250, rel=0.03)
    assert there.of_alone == pytest.approx(1250 / 4000, rel=0.03)
    assert slower_half(there, back) is there
    assert slower_half(back, there) is there
    assert slower_half(back, back) is None
    assert crossing(0, halves, pairs, 1000, {(0, (0, 2)): 1.0}, {}) is None, "a sum needs all its pairs"


def test_the_exclude_list_is_what_sbatch_takes() -> None:
    assert exclusion(["node3", "node7"]) == "node3,node7\n"
    assert exclusion([]) == ""


def test_the_list_of_an_earlier_run_does_not_survive(tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    path.write_text("node9\n")
    clear(path)
    assert not path.exists()
    assert exclude(path, []) == f"to exclude: nobody; {path} is empty"
    assert exclude(None, ["node3"]).startswith("to exclude: node3; --exclude-file FILE")
    nowhere = tmp_path / "nowhere" / "exclude.txt"
    with pytest.raises(BadInput, match="cannot be written \\(no such file or directory\\); give another"):
        clear(nowhere)


# --- The heat map


def heat_map(count: int, slow: Collection[Pair] = (), names: Sequence[str] | None = None) -> ElementTree.Element:
    shares = np.ones((count, count))
    np.fill_diagonal(shares, np.nan)
    for pair in slow:
        shares[pair] = 0.1
    ends = [str(end) for end in range(count)]
    chart = HeatMap("rates", ends, names or ends, shares * 2e9, shares, "B/s")
    return ElementTree.fromstring(str(chart.draw("c1")))  # noqa: S314 - our own text is what is tested


def cells(root: ElementTree.Element, level: str = "") -> list[str]:
    return [
        rect.findtext(f"{SVG}title") or ""
        for rect in root.iter(f"{SVG}rect")
        if rect.find(f"{SVG}title") is not None and level in rect.get("class", "")
    ]


def test_the_heat_map_tells_every_pair_and_shows_the_slow_one() -> None:
    root = heat_map(4, [(1, 2)], ["<a>", "b", "c", "d"])
    assert len(cells(root)) == 12
    assert cells(root, "heat-0") == ["b → c: 200 MB/s, 0.1 × the usual speed"]
    assert any(text.startswith("<a> → b: 2.00 GB/s") for text in cells(root, "heat-4"))
    description = root.findtext(f"{SVG}desc") or ""
    assert "1 at below 0.25, 11 at 0.9 to 1.25; slowest: b → c: 200 MB/s" in description
    assert root.get("aria-labelledby") == "c1-title c1-desc"
    numbers = [text.text for text in root.iter(f"{SVG}text") if "heat-text" in text.get("class", "")]
    assert {str(text) for text in numbers} == {"0.200", "2"}


@settings(max_examples=6, deadline=None)
@given(count=st.integers(MOST_CELLS + 1, 200), data=st.data())
def test_a_large_heat_map_never_hides_a_slow_pair(count: int, data: st.DataObject) -> None:
    slow = data.draw(st.permutations(range(count)))[:2]
    root = heat_map(count, [(slow[0], slow[1])])
    assert len(cells(root)) <= MOST_CELLS**2
    assert [text.split(":")[0] for text in cells(root, "heat-0")] == [f"{slow[0]} → {slow[1]}"]
    step = -(-count // MOST_CELLS)
    notes = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "note"]
    assert notes == [f"{count} ends: each square is the slowest of {step} × {step} pairs"]
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("width", "nan")) > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_heat_map_of_nothing_is_drawn(count: int) -> None:
    ends = [str(end) for end in range(count)]
    unknown = np.full((count, count), np.nan)
    root = ElementTree.fromstring(str(HeatMap("", ends, ends, unknown, unknown, "s").draw("c1")))  # noqa: S314 - our text
    assert root.findtext(f"{SVG}desc") == "no pair was measured"


# --- Real ranks


def read(folder: Path) -> list[RankFile]:
    files = [read_rank_file(path) for path in sorted(folder.glob("rank-*.jsonl"))]
    assert all(file.header and not file.garbage and not file.torn for file in files)
    return files


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
    files = read(out)
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
    wrong = [block for file in read(out) for block in file.blocks if block.metric == "check_errors"]
    # Two passes of two sizes; what both send at once goes another way and is right.
    spoiled = [block for block in wrong if block.samples.any()]
    assert {(block.tags["from"], block.tags["to"], block.tags["ways"]) for block in spoiled} == {(1, 0, ONE_WAY)}
    figures, _ = derive(read(out), {}, [])
    assert {f.tags["backend"] for f in figures} == {"mpi4py"}
    assert [f.value for f in figures if f.metric == "check_errors"] == [2, 2]
    assert sum(f.metric == "pair_rate" for f in figures) == 3


# --- Real hosts: network namespaces, one of them behind a token bucket

TRIAL = ("--sizes", "8,256KiB", "--passes", "2", "--transfers", "4", "--budget", "0.05", "--no-bisection")


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def run_trial(folder: Path, slow: int | None) -> tuple[str, Survey]:
    """Four hosts, one of which sends at 200 Mbit/s."""
    with lab(4) as hosts:
        if slow is not None:
            limit(hosts[slow], "200mbit")
        done = run_ranks(hosts, "comms/links.py", *TRIAL, "--out", folder)
    assert [one.returncode for one in done] == [0] * 4, "".join(one.stderr for one in done)
    found = survey(read(folder), {})
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
    assert namespaces() == "" or "lab-" not in namespaces()


def test_the_lab_is_gone_after_a_failure() -> None:
    known: list[Host] = []

    def fail() -> None:
        with lab(2) as hosts:
            known.extend(hosts)
            assert hosts[0].space in namespaces()
            name = subprocess.run(hosts[0].inside(["hostname"]), capture_output=True, check=True).stdout
            raise KeyError(name)

    with pytest.raises(KeyError, match="host0"):
        fail()
    assert not any(name in namespaces() for host in known for name in (host.space, host.switch))


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
        again = survey(read(tmp_path / f"ranks-{trial}"), {})
        assert again is not None
        told.append(named(again.verdict))
    assert told == [set()] * 20
