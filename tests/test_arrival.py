"""Who is late, on made-up entries and exits; clocks and device events by their arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from assay.arrival import FLOOR, clocks_error, late_rank, lateness, usable_times, waiting, widened
from assay.clock_sync import DRIFT, Probe, align, narrowest
from assay.device import HostDevice, open_device
from assay.device_events import RESOLUTION, Anchor, to_host
from assay.estimates import Estimate, completion_times

Array = NDArray[np.float64]
gpu = pytest.mark.skipif(not torch.accelerator.is_available(), reason="torch offers no accelerator here")


def calls(seed: int, ranks: int, count: int, skew: float, transfer: float = 2e-3) -> tuple[Array, Array]:
    """Entries after a barrier that lets ranks go up to some `skew` (s) apart, and exits of an all-reduce."""
    random = np.random.default_rng(seed)
    entries = np.arange(count) + random.exponential(skew, (ranks, count))
    return entries, left(random, entries, transfer)


def left(random: np.random.Generator, entries: Array, transfer: float) -> Array:
    return np.asarray(entries.max(axis=0) + transfer * random.lognormal(0, 0.3, entries.shape))


@given(seed=st.integers(0, 2**32), ranks=st.integers(2, 9), data=st.data())
def test_a_rank_20_ms_late_is_named_whatever_its_number(seed: int, ranks: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, ranks - 1))
    entries, _ = calls(seed, ranks, 24, skew=1e-3)
    entries[culprit] += 0.02
    exits = left(np.random.default_rng(seed), entries, 2e-3)
    found = late_rank(range(10, 10 + ranks), entries, exits, np.full(ranks, 1e-4))
    assert found is not None
    assert found.rank == 10 + culprit
    assert found.last_share > 0.9
    assert found.lateness.low is not None
    assert 0 < found.lateness.low < found.lateness.value < 0.03
    durations = np.median(exits - entries, axis=1)
    assert int(np.argmax(durations)) != culprit, "the longest duration is of a rank that waits"


def test_a_few_calls_in_which_a_core_was_taken_blame_nobody() -> None:
    # As measured on a busy machine: twelve calls within 59 ms, in ten of which one rank had to wait for its core.
    after = 1e-3 * np.array([3.51, 3.97, 3.3, 3.36, -0.16, 3.86, 3.29, 3.19, 3.15, 3.32, -0.16, 4.06])
    first = np.linspace(0, 0.055, 12)
    entries = np.stack([first, first + after])
    exits = np.broadcast_to(entries.max(axis=0) + 1e-4, entries.shape)
    assert late_rank((0, 1), entries, exits, np.zeros(2)) is None
    slower = np.stack([2 * first, 2 * first + after])  # the same for longer is a rank that is late
    assert late_rank((0, 1), slower, slower.max(axis=0) + 1e-4 * np.ones((2, 1)), np.zeros(2)) is not None


@given(seed=st.integers(0, 2**32), ranks=st.integers(2, 9), skew=st.floats(1e-6, 5e-3), count=st.integers(12, 100))
@settings(max_examples=200)
def test_disorder_blames_nobody(seed: int, ranks: int, skew: float, count: int) -> None:
    entries, exits = calls(seed, ranks, count, skew)
    assert late_rank(range(ranks), entries, exits, np.zeros(ranks)) is None


@given(errors=st.lists(st.floats(0, 1e-3), min_size=2, max_size=9), data=st.data())
def test_two_clocks_are_wrong_by_the_sum_of_their_bounds(errors: list[float], data: st.DataObject) -> None:
    pairs = {(a, b): errors[a] + errors[b] for a in range(len(errors)) for b in range(len(errors)) if a != b}
    rank = data.draw(st.integers(0, len(errors) - 1))
    assert clocks_error(errors, rank) == max(error for (own, _), error in pairs.items() if own == rank)
    assert clocks_error(errors) == max(pairs.values())


@given(seed=st.integers(0, 2**32), ranks=st.integers(2, 9), step=st.floats(0, 4e-4))
def test_a_barrier_that_always_lets_the_same_rank_go_last_blames_nobody(seed: int, ranks: int, step: float) -> None:
    entries, exits = calls(seed, ranks, 50, skew=1e-5)
    entries += step * np.arange(ranks)[:, None]
    assert late_rank(range(ranks), entries, exits + step * ranks, np.zeros(ranks)) is None


def late_by(gap: float, *, transfer: float = 2e-3, error: float = 0.0, count: int = 24, both: bool = False) -> bool:
    entries, _ = calls(1, 4, count, skew=1e-4)
    entries[2] += gap
    if both:
        entries[3] += gap
    exits = left(np.random.default_rng(1), entries, transfer)
    return late_rank(range(4), entries, exits, np.full(4, error)) is not None


def test_what_cannot_be_told_or_hardly_matters_is_no_blame() -> None:
    assert late_by(0.02)
    assert not late_by(0.02, error=0.011), "two clocks that may be wrong by 11 ms each"
    assert late_by(0.02, error=0.005)
    assert not late_by(0.02, transfer=1.0), "2 % of the call"
    assert not late_by(0.02, count=5), "too few calls for an interval"
    assert not late_by(0.02, both=True), "two ranks that are late together do not wait for each other"
    assert not late_by(0.8 * FLOOR)


def test_late_in_half_of_the_calls_is_no_blame() -> None:
    entries, _ = calls(3, 4, 40, skew=1e-5)
    entries[1, ::2] += 0.02
    exits = left(np.random.default_rng(3), entries, 2e-3)
    assert late_rank(range(4), entries, exits, np.zeros(4)) is None


@given(seed=st.integers(0, 2**32), ranks=st.integers(2, 6))
def test_waiting_and_lateness_are_of_the_last_entry(seed: int, ranks: int) -> None:
    entries, exits = calls(seed, ranks, 10, skew=1e-3)
    waited, gap = waiting(entries), lateness(entries)
    assert (waited >= 0).all()
    assert ((waited == 0).sum(axis=0) == 1).all()
    for call in range(10):
        last = int(np.argmax(entries[:, call]))
        others = np.delete(entries[:, call], last)
        assert gap[last, call] == entries[last, call] - others.max()
        assert (np.delete(gap[:, call], last) < 0).all()
    # What a rank sees is its waiting and the transfer, less what others take longer than it to leave.
    assert ((exits - entries) <= waited + completion_times(entries, exits) + 1e-12).all()


def test_one_rank_alone_is_late_for_nobody() -> None:
    assert late_rank([0], np.zeros((1, 20)), np.ones((1, 20)), np.zeros(1)) is None
    with pytest.raises(ValueError, match="single rank"):
        lateness(np.zeros((1, 20)))


def test_times_of_several_clocks_count_only_where_the_clocks_are_good_enough() -> None:
    completion, longest = np.full(9, 1e-3), np.full(9, 3e-3)
    times, how = usable_times(completion, longest, 5e-5)
    assert times is completion
    assert how == "last entry to last exit"
    for error in (6e-5, np.inf):
        times, how = usable_times(completion, longest, error)
        assert times is longest
        assert how == "longest over ranks, waiting included"


def test_an_interval_holds_what_the_clocks_may_be_wrong_by() -> None:
    wide = widened(Estimate(2e-3, 1e-3, 3e-3, 9, "median"), 1e-4)
    assert wide.low == pytest.approx(9e-4)
    assert wide.high == pytest.approx(3.1e-3)
    assert wide.method == "median, and ±100.0 µs of the clocks"


# --- Clocks. Times are of the size that a host's uptime has, where a float64 still tells 10 ns.

ROUNDING = 1e-8


@given(
    offset=st.floats(-1e6, 1e6),
    drift=st.floats(-DRIFT / 2, DRIFT / 2),
    ways=st.lists(st.tuples(st.floats(1e-6, 1e-2), st.floats(1e-6, 1e-2)), min_size=1, max_size=20),
)
def test_a_probe_never_errs_by_more_than_it_says(offset: float, drift: float, ways: list[tuple[float, float]]) -> None:
    def own(first: float) -> float:
        return first * (1 + drift) + offset

    exchanges, first = [], 1000.0
    for there, back in ways:
        exchanges.append((own(first), first + there, own(first + there + back)))
        first += there + back
    found = narrowest(exchanges)
    truth = found.at - (found.at - offset) / (1 + drift)
    assert abs(found.offset - truth) <= found.error + ROUNDING
    assert found.error <= min(there + back for there, back in ways), "no worse than the quickest exchange"


def test_exchanges_that_contradict_each_other_give_the_widest_bound() -> None:
    found = narrowest([(0.0, 0.0, 1e-4), (50.0, 0.0, 50.0001)])
    assert found.error >= 25


@given(
    offset=st.floats(-1e6, 1e6),
    drift=st.floats(-1e-4, 1e-4),
    errors=st.lists(st.floats(1e-6, 1e-3), min_size=1, max_size=6),
    signs=st.lists(st.sampled_from([-1, 0, 1]), min_size=6, max_size=6),
    at=st.floats(-20, 100),
)
def test_aligned_times_never_err_by_more_than_the_bound(
    offset: float, drift: float, errors: list[float], signs: list[int], at: float
) -> None:
    """Probes every 10 s, each as wrong as it may be; times before, between and after them."""
    probes = []
    for index, (error, sign) in enumerate(zip(errors, signs, strict=False)):
        own = 10.0 * index
        probes.append(Probe(own, offset + drift * own + sign * error, error))
    times, bound = align([at], probes)
    assert abs(times[0] - (at - offset - drift * at)) <= bound + ROUNDING


def test_a_clock_that_bends_between_probes_widens_the_bound() -> None:
    straight = [Probe(t, 1e-5 * t, 1e-6) for t in (0.0, 10.0, 20.0)]
    bent = [*straight[:1], Probe(10.0, 5e-4, 1e-6), *straight[2:]]
    assert align([5.0], straight)[1] == pytest.approx(1e-6)
    assert align([5.0], bent)[1] == pytest.approx(1e-6 + 4e-4)
    assert align([5.0], straight[:2])[1] == pytest.approx(1e-6 + 1e-4), "two probes cannot tell a line from a bend"


# --- Device events


@given(
    offset=st.floats(0, 1e6),
    speed=st.floats(1 - 1e-4, 1 + 1e-4),
    width=st.tuples(st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-3)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    share=st.floats(0, 1),
)
def test_device_times_never_err_by_more_than_the_bound(
    offset: float, speed: float, width: tuple[float, float], place: tuple[float, float], share: float
) -> None:
    """Anchors 3 s apart on the device's clock, which runs `speed` times as fast as the host's."""
    anchors = []
    for elapsed, wide, where in zip((0.0, 3.0), width, place, strict=True):
        happened = offset + elapsed / speed
        anchors.append(Anchor(elapsed, happened - where * wide, happened + (1 - where) * wide))
    device = 3.0 * share
    times, error = to_host([device], *anchors)
    assert abs(times[0] - (offset + device / speed)) <= error + ROUNDING
    assert error <= max(width) / 2 + RESOLUTION + 1e-6


def test_a_cpu_has_no_events_of_its_own() -> None:
    assert HostDevice().timeline() is None


@pytest.mark.gpu
@gpu
def test_events_of_the_accelerator_lie_between_the_hosts_readings() -> None:
    import time

    device = open_device("auto", 0)
    timeline = device.timeline()
    assert timeline is not None
    timeline.start()
    square = torch.ones(512, 512, device=device.torch_device)
    begun = time.monotonic()
    for _ in range(10):
        timeline.mark()
        square @ square
        timeline.mark()
    device.synchronize()
    ended = time.monotonic()
    entries, exits, error = timeline.read()
    assert len(entries) == len(exits) == 10
    assert (exits >= entries).all()
    assert begun - error <= entries.min()
    assert exits.max() <= ended + error
    assert error < 1e-3
