"""Timed regions: a monotonic clock with the device synchronised on both sides.

One clock for everything: `time.monotonic` reads CLOCK_MONOTONIC, which all processes of a host share, so that the
times of ranks on one host can be compared with each other.
"""

import time
from collections.abc import Callable

from assay.device import Device

now = time.monotonic


def resolution() -> float:
    """The clock's resolution in seconds, as the system states it."""
    return time.get_clock_info("monotonic").resolution


def timed(device: Device, work: Callable[[], object]) -> float:
    """Seconds that `work` takes on `device`, everything it enqueued included."""
    device.synchronize()
    start = now()
    work()
    device.synchronize()
    return now() - start
