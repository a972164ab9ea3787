"""Links: the tournament, and who is named in made-up times."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from assay.errors import BadInput
from assay.links.bisection import Crossing, crossing, slower_half
from assay.links.faults import CONFIRM_PASSES, CONFIRM_TRANSFERS
from assay.links.matrix import BOTH_WAYS, ONE_WAY
from assay.links.rounds import Pair, cuts, lanes, rounds
from assay.links.survey import CONFIRM, MATRIX, Limits, Survey, condensed, matrices, suspects, verdict
from assay.links.verdict import Verdict, sentences
from assay.options.base import validate
from assay.options.links import LinksOptions
from assay.report.links import links_chapter
from assay.scoring.links import doubts

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

    def times(phase: str, pair: Pair, size: int, ways: str) -> list[float]:
        speed = min(speeds[pair], speeds[pair[::-1]]) if ways == BOTH_WAYS else speeds[pair]
        return [size / 1e9 / speed * float(factor) for factor in random.lognormal(0, noise, 6)]

    return decided(times, hosts, sizes)


def decided(times: Callable[[str, Pair, int, str], list[float]], hosts: Sequence[str], sizes: Sequence[int]) -> Verdict:
    """The verdict on the times that a phase, pair, size and way have."""
    everyone = range(len(hosts))
    samples = {
        (MATRIX, size, ways, -1, number, pair): times(MATRIX, pair, size, ways)
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
                samples[key] = times(CONFIRM, pair, one.bytes, one.ways)[:CONFIRM_TRANSFERS]
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
    assert (named(found), found.split) == (set(), [])
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


@pytest.mark.parametrize(("count", "slow"), [(4, 2), (5, 3), (6, 3), (12, 6)])
def test_where_half_of_the_ends_are_slow_nobody_is_called_well(count: int, slow: int) -> None:
    speeds = np.ones((count, count))
    speeds[-slow:] = speeds[:, -slow:] = 0.2
    found = drawn(speeds, distinct(count), 0.05, 1)
    told = sentences(found)
    assert told[0] == f"no rank and no link is named among {count}"
    assert told[1].startswith("the usual pair carries 1MiB at 0.")
    assert "of the fastest pairs' rate: pairs fall into two groups, and neither can be called usual" in told[1]
    surveyed = Survey((), found)
    assert [kind for kind, _, _ in doubts(surveyed)] == ["no_usual_pair"]
    ((row,),) = [table.rows for part in links_chapter([("case", surveyed)]).parts for table in part.tables]
    assert [row[0].text, row[1].text, row[-1].text] == ["the usual pair", "1 MiB", "no"]


@pytest.mark.parametrize("fault", [{2}, {2, 4}])
def test_a_fault_both_ways_is_named_though_another_size_looked_slow_for_a_while(fault: set[int]) -> None:
    def times(phase: str, pair: Pair, size: int, ways: str) -> list[float]:
        faulty = size == SIZE and ways == BOTH_WAYS and fault <= set(pair)
        disturbed = size == 8 and ways == ONE_WAY and pair[0] == 2 and phase == MATRIX
        return [size / 1e9 / (0.3 if faulty else 0.1 if disturbed else 1)] * 6

    found = decided(times, distinct(6), (8, SIZE))
    assert named(found) == {tuple(fault)}
    assert "1MiB both ways at once at 0.3" in sentences(found)[0]


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
