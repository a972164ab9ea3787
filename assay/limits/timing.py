"""Samples of one kind of work, back to back, for about as long as is asked."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from assay.clock import now
from assay.device import Device

FEWEST = 5  # samples even where one alone outlasts the time given
SHORTEST = 5e-3  # s; a sample of shorter calls holds several: what it costs to wait for the device must not count


@dataclass(frozen=True)
class Work:
    """Something a device is made to do. call: starts it once; all that is prepared lies outside of it.

    amount: operations or bytes of one call.
    """

    call: Callable[[], object]
    amount: int


@dataclass(frozen=True)
class Timings:
    """Seconds of samples that followed each other without a gap, each of `calls` calls.

    begun: monotonic seconds at the first one's start.
    """

    begun: float
    times: list[float]
    calls: int

    @property
    def best_call(self) -> float:
        """Seconds per call in the fastest sample."""
        return min(self.times) / self.calls


def take_samples(
    device: Device, seconds: float, call: Callable[[], object], *, fewest: int = FEWEST, shortest: float = SHORTEST
) -> Timings:
    """Repeat `call` for about `seconds`, after untimed calls that tell how many make a sample of `shortest` s or more."""
    call()
    device.synchronize()
    start = now()
    call()
    device.synchronize()
    calls = max(1, math.ceil(shortest / max(now() - start, 1e-9)))
    times: list[float] = []
    begun = start = now()
    while start - begun < seconds or len(times) < fewest:
        for _ in range(calls):
            call()
        device.synchronize()
        end = now()
        times.append(end - start)
        start = end
    return Timings(begun, times, calls)
