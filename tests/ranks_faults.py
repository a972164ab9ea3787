"""Ranks whose transport does something wrong: python -m torch.distributed.run … tests/ranks_faults.py FAULT OPTIONS…

The benchmark itself is comms/bench.py's, unchanged.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from assay.options import CommsOptions, parse_command_line
from assay.ranks import session
from assay.transports import Bound, Transport, open_transport
from comms.bench import run

# Which argument of a transport's method is what this rank receives into.
RECEIVED = {
    "all_reduce": 1, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "all_to_all_v": 1, "broadcast": 0,
    "reduce": 1, "gather": 1, "scatter": 1, "receive": 0, "exchange": 2,
}  # fmt: skip


def swap_two_chunks(call: Callable[[], object], sent: torch.Tensor, received: torch.Tensor) -> None:
    call()
    half = received.numel() // 2
    received.copy_(torch.cat([received[half : 2 * half], received[:half], received[2 * half :]]))


def flip_a_bit(call: Callable[[], object], sent: torch.Tensor, received: torch.Tensor) -> None:
    call()
    if received.numel():
        received.view(torch.uint8)[received.numel() * 2] ^= 1


def skip_a_contribution(call: Callable[[], object], sent: torch.Tensor, received: torch.Tensor) -> None:
    if torch.distributed.get_rank() == 0:
        sent.zero_()
    call()


def return_early(call: Callable[[], object], sent: torch.Tensor, received: torch.Tensor) -> None:
    call()
    arrived = received.clone()
    received.fill_(77)

    def arrive() -> None:
        time.sleep(0.1)
        received.copy_(arrived)

    threading.Thread(target=arrive).start()


def come_late(call: Callable[[], object], sent: torch.Tensor, received: torch.Tensor) -> None:
    call()  # see Faulty: it is the way from the barrier to the call that takes a rank so long


FAULTS = (swap_two_chunks, flip_a_bit, skip_a_contribution, return_early, come_late)


class Faulty:
    """A transport that is right but for one fault."""

    def __init__(self, real: Transport, fault: Callable[[Callable[[], object], torch.Tensor, torch.Tensor], None]):
        self._real, self._fault = real, fault

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name == "barrier" and self._fault is return_early:
            # One rank does not wait for the others.
            rank = self._real.rank

            def hurry() -> None:
                if rank != 1:
                    time.sleep(0.002)

            return lambda: Bound(hurry, hurry)
        if name == "barrier" and self._fault is come_late:
            wait = self._real.barrier()
            pause = 0.02 if torch.distributed.get_rank() == 1 else 0.0

            def pass_late() -> None:
                wait.call()
                time.sleep(pause)

            return lambda: Bound(pass_late, wait.start)
        if name == "send" and self._fault is skip_a_contribution:
            return lambda buffer, to: self._wrapped(method(buffer, to), buffer, buffer)
        if name not in RECEIVED:
            return method
        return lambda *args: self._wrapped(method(*args), args[0], args[RECEIVED[name]])

    def _wrapped(self, bound: Bound, sent: torch.Tensor, received: torch.Tensor) -> Bound:
        return Bound(lambda: self._fault(bound.call, sent, received), bound.start)


if __name__ == "__main__":
    named = sys.argv.pop(1)
    fault = next(fault for fault in FAULTS if fault.__name__ == named)
    arguments = parse_command_line(CommsOptions, __doc__)
    with session(arguments, "comms/bench") as here:
        real = open_transport(here.world.backend, here.world, here.device, arguments.groups(here.world.size))
        run(arguments, here, [Faulty(real, fault)])
