"""The offset of every rank's monotonic clock to rank 0's, with a bound of its error: how ranks of several hosts compare times.

A rank notes its own time, asks rank 0 for its time, and notes its own time again: rank 0 read its clock in between, so
the offset lies between the two differences (Cristian, Distributed Computing 3, 1989). Many exchanges intersect. That
costs the slower way of one message at most, whatever the network does.

Ranks with the same clock share one offset: only the first rank of each clock, its leader, exchanges messages, one leader
after the other. A probe costs EXCHANGES round trips for each further clock, so 1,000 hosts at 50 µs take a second.
Between two probes the offset is interpolated.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.arrival import usable_times
from assay.channel import Channel
from assay.clock import now
from assay.record import encode_block
from assay.recorder import Recorder
from assay.world import World

Array = NDArray[np.float64]

METRIC = "clock_offset"
EXCHANGES = 16
PERIOD = 10.0  # s between probes, at least
MOST_OF_TIME = 0.05  # of a run that probes may take: with many clocks they come less often
# Two monotonic clocks drift apart by less than this: crystals are within 100 ppm of the truth, and the kernel slews a
# clock to the network's time by 500 ppm at most unless a daemon is told otherwise.
DRIFT = 1e-3


@dataclass(frozen=True)
class Probe:
    """One reading of a clock. at: s on that clock; offset: that clock − rank 0's (s); error: s, to either side."""

    at: float
    offset: float
    error: float


def narrowest(exchanges: Sequence[tuple[float, float, float]]) -> Probe:
    """What all exchanges together tell, at the time of the quickest.

    exchanges: own time before, rank 0's time, own time after (s). The bounds of each hold at its own time, and are made
    wider by what the clocks can have drifted since. Raises ValueError on no exchanges.
    """
    if not exchanges:
        raise ValueError("no exchanges")
    before, first, after = np.asarray(exchanges, dtype=np.float64).T
    quickest = int(np.argmin(after - before))
    at = (before[quickest] + after[quickest]) / 2
    slack = DRIFT * np.maximum(np.abs(before - at), np.abs(after - at))
    lows, highs = before - first - slack, after - first + slack
    low, high = lows.max(), highs.min()
    if low > high:  # a clock was set or stopped meanwhile: all that is certain is that it was somewhere here
        low, high = lows.min(), highs.max()
    return Probe(float(at), float((low + high) / 2), float((high - low) / 2))


def align(times: ArrayLike, probes: Sequence[Probe]) -> tuple[Array, float]:
    """`times` (s, own clock) on rank 0's clock, and the bound of their error (s).

    Offsets are interpolated between probes, and so are the probes' errors. To that comes what a straight line cannot know:
    with three probes or more, how far those around `times` are at most from the line through their neighbours, with two
    the whole change between them. Beyond the first and the last probe, DRIFT a second is added. Raises ValueError on no
    probes.
    """
    if not probes:
        raise ValueError("no probes")
    own = np.asarray(times, dtype=np.float64)
    if not own.size:
        return own, 0.0
    ordered = sorted(probes, key=lambda probe: probe.at)
    at, offset, error = (np.array([getattr(probe, key) for probe in ordered]) for key in ("at", "offset", "error"))
    begin, end = float(own.min()), float(own.max())
    beyond = max(float(at[0]) - begin, end - float(at[-1]), 0.0)
    bound = float(np.interp(own, at, error).max()) + _bend(at, offset, begin, end) + DRIFT * beyond
    return own - np.interp(own, at, offset), bound


def _bend(at: Array, offset: Array, begin: float, end: float) -> float:
    if at.size < 3:
        return float(np.ptp(offset))
    left, right = at[:-2], at[2:]
    share = np.divide(at[1:-1] - left, right - left, out=np.zeros(at.size - 2), where=right > left)
    apart = np.abs(offset[1:-1] - offset[:-2] - share * (offset[2:] - offset[:-2]))
    first, last = int(np.searchsorted(at, begin, "right")) - 1, int(np.searchsorted(at, end, "left"))
    return float(apart[max(first - 1, 0) : last].max(initial=0.0))


def probe(channel: Channel, clocks: Sequence[str], recorder: Recorder) -> list[Probe]:
    """Probe every clock once; every rank must call it. The probes of all clocks, in the order of their first ranks.

    clocks: the clock of each rank (World.clocks). Each rank writes its own clock's probe into its own file: a block
    `clock_offset` (s) of one sample, its error bound (s) as tag `error`, its time on the rank's own clock as the block's
    time. Where all ranks share one clock nothing is sent and nothing written.
    """
    leaders: dict[str, int] = {}
    for rank, clock in enumerate(clocks):
        leaders.setdefault(clock, rank)
    order = list(leaders)
    if len(order) < 2:
        return [Probe(now(), 0.0, 0.0)]
    mine = order.index(clocks[channel.rank])
    known = np.full((len(order), 3), -np.inf)
    if channel.rank == 0:
        known[0] = now(), 0.0, 0.0
        for leader in list(leaders.values())[1:]:
            for _ in range(EXCHANGES):
                channel.receive(leader)
                channel.send(now(), leader)
    elif leaders[clocks[channel.rank]] == channel.rank:
        found = narrowest([_exchange(channel) for _ in range(EXCHANGES)])
        known[mine] = found.at, found.offset, found.error
    # The maximum with minus infinity is how each clock's leader tells all ranks at the price of one small reduction.
    probes = [Probe(*map(float, row)) for row in channel.largest(known.reshape(-1)).reshape(-1, 3)]
    own = probes[mine]
    recorder.write(
        encode_block(
            METRIC, "s", [own.offset], tags={"error": own.error}, first_step=None, t_first=own.at, t_last=own.at
        )
    )
    return probes


def _exchange(channel: Channel) -> tuple[float, float, float]:
    before = now()
    channel.send(before, 0)
    first = channel.receive(0)
    return before, first, now()


class Alignment:
    """The clocks of a run while it goes on. Every rank makes the same calls in the same order.

    error: bound (s) of the difference between times of any two ranks, by the latest probe, as long as clocks do not
    drift: enough to decide when to stop. What is reported is interpolated afterwards, by `align`.
    """

    def __init__(self, world: World, recorder: Recorder) -> None:
        self._world, self._recorder = world, recorder
        self._own = 0.0
        self.error = 0.0
        self._next = 0.0
        self.probe()

    def probe(self) -> None:
        """Probe now: at the start and at the end of a run."""
        if self._world.one_clock:
            return
        begun = time.monotonic()
        clocks = self._world.clocks
        probes = probe(self._world.channel, clocks, self._recorder)
        order = list(dict.fromkeys(clocks))
        self._own = probes[order.index(clocks[self._world.rank])].offset
        self.error = sum(sorted(item.error for item in probes)[-2:])
        ended = time.monotonic()
        self._next = ended + max(PERIOD, (ended - begun) / MOST_OF_TIME)

    def refresh(self) -> None:
        """Probe if the last time is PERIOD s ago, or longer where a probe takes long. Rank 0 decides."""
        if not self._world.one_clock and self._world.agree(int(time.monotonic() >= self._next)):
            self.probe()

    def to_first(self, times: ArrayLike) -> Array:
        """Own times on rank 0's clock (s), by the latest probe."""
        return np.asarray(times, dtype=np.float64) - self._own

    def call_times(self, entries: ArrayLike, exits: ArrayLike, takes_part: bool = True) -> tuple[Array, str]:
        """Seconds of each call over all ranks, and how they were taken (see assay.arrival.usable_times).

        entries, exits: [calls], s on the own clock; every rank gives as many, also those that take no part. One reduction
        over ranks, so the cost grows with the logarithm of their number.
        """
        enter, leave = self.to_first(entries), self.to_first(exits)
        values = np.concatenate([enter, leave, leave - enter])
        most = self._world.largest(values if takes_part else np.full_like(values, -np.inf))
        last_in, last_out, longest = most.reshape(3, -1)
        return usable_times(last_out - last_in, longest, self.error)
