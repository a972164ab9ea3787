"""Who came late to a collective, and what a call costs besides: entries and exits split into waiting and transfer.

All arrays are [ranks, calls], in s on one common clock (assay/clock_sync.py makes it one). A call is transfer from the
entry of the last rank to the exit of the last; before that, ranks wait for the last one. The longest duration is no
sign of a late rank: the late one waits for nobody, so its call is among the shortest.

A rank is blamed only if its lateness cannot come from anything else (see `least_blamed`), because before each call ranks
leave a barrier, and leave it apart: on two cores shared by four ranks, barriers over sockets put one and the same rank
last in all of 24 calls, by up to 0.4 ms; MPI's barriers in shared memory by up to 0.2 ms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from assay.estimates import Estimate, interval_ranks, median_interval

Array = NDArray[np.float64]

GOOD = 0.05  # error of the clocks, relative to the time of a call, up to which times of several clocks are used
ALIGNED = "last entry to last exit"
LONGEST = "longest over ranks, waiting included"

FLOOR = 1e-3  # s of lateness; less cannot be told from what a barrier does
MATERIAL = 0.1  # of the transfer time; less hardly matters to the call
MOST = 0.75  # of the calls, in which a rank must be that late: the interval trusts calls in a row too much
LASTING = 0.1  # s that the calls must have gone on for: a rank may have lost its core to others for a while


@dataclass(frozen=True)
class Late:
    """A rank that holds the others up. lateness: s by which it enters after all others, with its interval.

    last_share: of the calls, in how many it came last.
    """

    rank: int
    lateness: Estimate
    last_share: float


@dataclass(frozen=True)
class Lateness:
    """A late rank of one measurement: of which case's op and size (`tags`), on which host."""

    tags: Mapping[str, Any]
    host: str
    late: Late = field(compare=False)


def waiting(entries: ArrayLike) -> Array:
    """Seconds that each rank waits for the last one to come, [ranks, calls]."""
    enter = np.asarray(entries, dtype=np.float64)
    return np.asarray(enter.max(axis=0) - enter)


def lateness(entries: ArrayLike) -> Array:
    """Seconds by which each rank enters after the last of all others, [ranks, calls]; below 0 unless it is the last.

    What a call would gain if the rank came with the others: less than its distance from their median.
    Raises ValueError for fewer than two ranks.
    """
    enter = np.asarray(entries, dtype=np.float64)
    if enter.shape[0] < 2:
        raise ValueError("a single rank is late for nobody")
    ordered = np.sort(enter, axis=0)
    last, second = ordered[-1], ordered[-2]
    # Of two ranks that come last together, neither is late: both differences are 0.
    return np.asarray(np.where(enter == last, last - second, enter - last))


def least_blamed(entries: Array, rank: int, transfer: float, errors: Array) -> float:
    """The lateness (s) that row `rank` must exceed to be called late, in nearly every call.

    The largest of FLOOR; MATERIAL of the transfer time (s); what the entries of all other ranks are usually apart (one
    rank among many in disorder is no culprit); and what the clocks may be wrong by.
    """
    others = np.delete(entries, rank, axis=0)
    spread = float(np.median(np.ptp(others, axis=0)))
    return max(FLOOR, MATERIAL * transfer, spread, clocks_error(errors, rank))


def clocks_error(errors: ArrayLike, rank: int | None = None) -> float:
    """Bound (s) of the difference between row `rank`'s clock and any other; without `rank`, between any two clocks.

    errors: [ranks], bound of each clock's error (s).
    """
    bounds = np.asarray(errors, dtype=np.float64)
    own = int(np.argmax(bounds)) if rank is None else rank
    return float(bounds[own] + np.delete(bounds, own).max()) if len(bounds) > 1 else 0.0


def late_rank(ranks: Sequence[int], entries: ArrayLike, exits: ArrayLike, errors: ArrayLike) -> Late | None:
    """The rank that is late, or None where nobody can be blamed.

    ranks: the number of each row; errors: [ranks], bound of each clock's error (s), 0 where all read one clock.
    It is late if it exceeds `least_blamed` in MOST of the calls, and with the lower end of the 95 % order-statistic interval
    of its median lateness, which takes six calls at least, and if the calls went on for LASTING. That interval is over single calls, as if they were independent:
    a rank that is late because of what lasts (load beside it) is late in correlated calls. MOST guards against chance.
    """
    enter, leave = np.asarray(entries, dtype=np.float64), np.asarray(exits, dtype=np.float64)
    ends = interval_ranks(enter.shape[1]) if enter.ndim == 2 else None
    if ends is None or enter.shape[0] < 2 or float(np.ptp(enter.max(axis=0))) < LASTING:
        return None
    after = lateness(enter)
    row = int(np.argmax(np.median(after, axis=1)))
    transfer = float(np.median(leave.max(axis=0) - enter.max(axis=0)))
    bounds = np.asarray(errors, dtype=np.float64)
    least = least_blamed(enter, row, transfer, bounds)
    late = after[row]
    if float(np.sort(late)[ends[0]]) <= least or float(np.mean(late > least)) < MOST:
        return None
    interval = widened(_interval(late, ends), clocks_error(bounds, row))
    return Late(ranks[row], interval, float(np.mean(late > 0)))


def _interval(late: Array, ends: tuple[int, int]) -> Estimate:
    found = median_interval(late)
    if found.low is not None:
        return found
    ordered = np.sort(late)
    method = f"median, order-statistic interval over {late.size} calls that are correlated"
    return Estimate(found.value, float(ordered[ends[0]]), float(ordered[ends[1]]), late.size, method)


def widened(estimate: Estimate, error: float) -> Estimate:
    """The estimate with an interval that holds whatever the clocks are wrong by (`error`, s)."""
    if estimate.low is None or estimate.high is None or not error:
        return estimate
    method = f"{estimate.method}, and ±{error * 1e6:.1f} µs of the clocks"
    return Estimate(estimate.value, estimate.low - error, estimate.high + error, estimate.samples, method)


def usable_times(completion: Array, longest: Array, error: float) -> tuple[Array, str]:
    """Seconds of each call, and how they were taken: `completion` (last entry to last exit) where clocks allow it.

    error: bound (s) of the difference of any two ranks' clocks, infinite where it is not known. Above GOOD of the median
    completion the `longest` duration over ranks, which needs no common clock but includes waiting.
    """
    if completion.size and error <= GOOD * float(np.median(completion)):
        return completion, ALIGNED
    return longest, LONGEST
