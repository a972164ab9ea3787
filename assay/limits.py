"""Ceilings: what this machine can do at most, measured as raw times. Rates are derived by readers.

First version: dense matrix multiplication and memory copy. A figure of the suite is shown as a share of these.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from assay.clock import now
from assay.device import Device

FEWEST = 5  # samples even where one alone outlasts the time given

# A size that keeps a device busy long enough for its launch not to matter, and copies that no cache holds.
CPU_GEMM_SIZE, CPU_COPY_BYTES = 1024, 64 << 20
ACCELERATOR_GEMM_SIZE, ACCELERATOR_COPY_BYTES = 8192, 1 << 30


@dataclass(frozen=True)
class Timings:
    """Seconds of samples that followed each other without a gap; `begun`: monotonic seconds at the first one's start."""

    begun: float
    times: list[float]


def gemm_flops(size: int) -> int:
    """Floating-point operations of a size × size × size matrix multiplication: 2·size³."""
    return 2 * size**3


def time_gemm(device: Device, size: int, dtype: torch.dtype, seconds: float) -> Timings:
    """Single size × size matrix multiplications, for about `seconds` in all, after two untimed ones."""
    left = torch.rand(size, size, device=device.torch_device).to(dtype)
    right = torch.rand(size, size, device=device.torch_device).to(dtype)
    result = torch.empty(size, size, device=device.torch_device, dtype=dtype)
    return _time(device, seconds, lambda: torch.mm(left, right, out=result))


def time_copy(device: Device, count: int, seconds: float) -> Timings:
    """Single copies of `count` bytes from one buffer of the device's memory to another, after two untimed ones."""
    source = torch.ones(count, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    return _time(device, seconds, lambda: target.copy_(source))


def copy_bytes_moved(count: int) -> int:
    """Bytes that a copy of `count` moves: each is read once and written once (STREAM's convention)."""
    return 2 * count


def _time(device: Device, seconds: float, work: Callable[[], object]) -> Timings:
    for _ in range(2):
        work()
    device.synchronize()
    times: list[float] = []
    begun = start = now()
    while start - begun < seconds or len(times) < FEWEST:
        work()
        device.synchronize()
        end = now()
        times.append(end - start)
        start = end
    return Timings(begun, times)
