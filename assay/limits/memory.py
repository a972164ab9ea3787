"""Copies and triads in a device's memory, between host and device, and between the devices of a host."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from assay.device import Device
from assay.limits.timing import Work
from assay.machine import last_level_caches

LEAST_CPU, ON_ACCELERATOR = 64 << 20, 1 << 30  # bytes per buffer
BEYOND_CACHE = 4  # all buffers of a kind together are so many times the last caches, as STREAM asks for
PIECE = 256 << 20  # bytes per call on a CPU: so long that threads which wait for each other at its end do not count
SHARE_OF_FREE = 8  # a buffer takes no more than this part of the free memory, and no rank more than its own of that


def buffer_bytes(device: Device, local_ranks: int) -> int:
    """Bytes per buffer, a multiple of 4 KiB, such that no cache holds what is copied with `local_ranks` ranks at work."""
    if device.type == "cpu":
        wanted = max(LEAST_CPU, BEYOND_CACHE * (last_level_caches() or 0) // local_ranks)
        free = (device.memory().free or wanted * SHARE_OF_FREE) // local_ranks
    else:
        wanted = ON_ACCELERATOR
        free = device.memory().free or wanted * SHARE_OF_FREE
    return max(4096, min(wanted, free // SHARE_OF_FREE) // 4096 * 4096)


def copy(device: Device, count: int) -> Work:
    """Copying from one buffer of `count` bytes to another of the same memory, on a CPU piece by piece.

    Bytes are counted twice, once read and once written: STREAM's convention. A CPU copies with the C library's memcpy in
    as many threads as torch uses: it writes past the caches, and does not read first what it is going to overwrite.
    """
    source, target = _filled(device, count), _filled(device, count)
    if device.type != "cpu":
        return Work(partial(target.copy_, source), 2 * source.nbytes)
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)

    def copied(pair: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], object]:
        parts = list(zip(*(np.array_split(side.numpy(), threads) for side in pair), strict=True))
        return lambda: [done.result() for done in [pool.submit(np.copyto, to, of) for to, of in parts]]

    pieces = [(piece[0], piece[1]) for piece in _pieces(target, source)]
    return Work(_in_turn([copied(pair) for pair in pieces]), 2 * pieces[0][0].nbytes)


def triad(device: Device, count: int) -> Work:
    """STREAM's triad a = b + s·c on float32 buffers of `count` bytes, on a CPU piece by piece; two are read, one is written."""
    buffers = [_filled(device, count) for _ in range(3)]
    pieces = _pieces(*buffers) if device.type == "cpu" else [tuple(buffers)]
    works = [partial(torch.add, b, c, alpha=3.0, out=a) for a, b, c in pieces]
    return Work(_in_turn(works), 3 * pieces[0][0].nbytes)


def host_copy(device: Device, count: int, *, to_device: bool, pinned: bool) -> Work:
    """Copying `count` bytes between host memory, pinned or pageable, and the device."""
    host = torch.ones(count // 4)
    if pinned:
        host = host.pin_memory()
    there = _filled(device, count)
    target, source = (there, host) if to_device else (host, there)
    return Work(lambda: target.copy_(source, non_blocking=pinned), source.nbytes)


def link(device: Device, pair: tuple[int, int], count: int, *, both_ways: bool) -> Work:
    """Copying `count` bytes from the first to the second device of `pair`, numbers of this host's devices.

    both_ways: at the same time as many back, on a stream of their own, and both are counted.
    """
    here, there = (torch.device(device.type, index) for index in pair)
    sent, received = torch.ones(count // 4, device=here), torch.ones(count // 4, device=there)

    # A copy between devices may be enqueued on either of them; it is over when both are idle.
    def idle() -> None:
        for index in pair:
            torch.accelerator.synchronize(index)

    def send() -> None:
        received.copy_(sent, non_blocking=True)
        idle()

    if not both_ways:
        return Work(send, sent.nbytes)
    back, returned = torch.ones_like(received), torch.ones_like(sent)
    module = torch.get_device_module(device.type)
    outward, homeward = module.Stream(device=here), module.Stream(device=there)
    idle()  # the buffers are filled on other streams than these

    def exchange() -> None:
        with module.stream(outward):
            received.copy_(sent, non_blocking=True)
        with module.stream(homeward):
            returned.copy_(back, non_blocking=True)
        idle()

    return Work(exchange, 2 * sent.nbytes)


def _filled(device: Device, count: int) -> torch.Tensor:
    # Written once: memory that was never touched is one page of zeros, and copies of it come out of a cache.
    if device.type == "cpu":
        # numpy asks the kernel for huge pages, torch does not; a ceiling must not be that of the page tables.
        return torch.from_numpy(np.ones(count // 4, dtype=np.float32))
    return torch.ones(count // 4, device=device.torch_device)


def _pieces(*buffers: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The buffers cut alike into pieces of one size; what remains behind the last whole one is left alone."""
    length = min(PIECE // 4, buffers[0].numel())
    starts = range(0, buffers[0].numel() - length + 1, length)
    return [tuple(buffer[start : start + length] for buffer in buffers) for start in starts]


def _in_turn(works: Sequence[Callable[[], object]]) -> Callable[[], object]:
    # A piece comes round again only when all others have passed through the caches.
    turn = 0

    def work() -> object:
        nonlocal turn
        turn = (turn + 1) % len(works)
        return works[turn]()

    return work
