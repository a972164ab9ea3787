"""When an accelerator enters and leaves calls, on the host's clock: its events, anchored between two readings of the host.

A host that enqueues work runs ahead of its device, so its own entry tells little about when the device arrived. An event
is stamped by the device when it gets there. What the device's clock reads on the host's is known by an anchor: an event
that was recorded and had happened between two readings of the host's clock. A second anchor at the end corrects for
clocks of different speed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

TRIES = 5  # for each anchor; the quickest counts
RESOLUTION = 1e-6  # s; vendors promise about half of that
ROUNDING = 2.0**-23  # elapsed times come as float32


@dataclass(frozen=True)
class Anchor:
    """An event that happened between two host times. elapsed: s on the device's clock since the first event of all."""

    elapsed: float
    before: float
    after: float

    @property
    def middle(self) -> float:
        """The host's best guess (s)."""
        return (self.before + self.after) / 2

    @property
    def error(self) -> float:
        """How far off that can be (s)."""
        return (self.after - self.before) / 2


def to_host(elapsed: ArrayLike, first: Anchor, last: Anchor) -> tuple[Array, float]:
    """Host's monotonic times (s) of events, from their device times (s since the first event), and the bound of the error.

    A line through both anchors. Between them it errs by no more than the wider of the two, plus RESOLUTION and the
    rounding of the device's own numbers. Anchors at one and the same device time give an offset only.
    """
    device = np.asarray(elapsed, dtype=np.float64)
    span = last.elapsed - first.elapsed
    speed = (last.middle - first.middle) / span if span > 0 else 1.0
    times = first.middle + (device - first.elapsed) * speed
    error = max(first.error, last.error) + RESOLUTION + ROUNDING * float(np.abs(device).max(initial=last.elapsed))
    return times, error


class Timeline:
    """Events around the calls of one measurement: start, then enter and leave around each call, then read.

    make: a new event with timing (record, synchronize, elapsed_time in ms as in torch.cuda.Event).
    synchronize: returns when the device has nothing left to do. Raises what the vendor's events raise without times.
    """

    def __init__(self, make: Callable[[], Any], synchronize: Callable[[], None]) -> None:
        self._make, self._synchronize = make, synchronize
        # One round for nothing: a vendor whose events have no times says so here.
        self.start()
        self.read()

    def start(self) -> None:
        """Begin anew, with an anchor: events of one measurement are never far from theirs."""
        self._events: list[Any] = []
        self._origin, self._first = self._anchor(None)

    def mark(self) -> None:
        """An event behind everything enqueued so far: before a call it is the device's entry, after it its exit."""
        event = self._make()
        event.record()
        self._events.append(event)

    def read(self) -> tuple[Array, Array, float]:
        """Entries and exits (host's monotonic s) of the calls since `start`, and the bound of their error (s).

        Every other mark is an entry. Waits for the device.
        """
        _, last = self._anchor(self._origin)
        elapsed = np.array([self._origin.elapsed_time(event) for event in self._events]) / 1e3
        times, error = to_host(elapsed, self._first, last)
        return times[0::2], times[1::2], error

    def _anchor(self, origin: Any | None) -> tuple[Any, Anchor]:
        self._synchronize()
        tries = [self._try() for _ in range(TRIES)]
        before, after, event = min(tries, key=lambda one: one[1] - one[0])
        elapsed = 0.0 if origin is None else float(origin.elapsed_time(event)) / 1e3
        return event, Anchor(elapsed, before, after)

    def _try(self) -> tuple[float, float, Any]:
        event = self._make()
        before = time.monotonic()
        event.record()
        event.synchronize()
        return before, time.monotonic(), event
