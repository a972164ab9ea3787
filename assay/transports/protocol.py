"""What a transport is: collectives on flat tensors, each bound to its buffers once and then called many times.

A bound call holds nothing but the transport's own function with its arguments, so that the timed loop times the transport
and not this suite. A call returns only when its handle has been awaited; work on a device is complete after
`Device.synchronize`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

ONE_BY_ONE = "all begun, then all awaited"


@dataclass(frozen=True)
class Bound:
    """One collective with its buffers. call: begin and await. start: begin, and give what `Transport.wait` awaits."""

    call: Callable[[], object]
    start: Callable[[], Any]


class Transport(Protocol):
    """Collectives of one group of ranks. Ranks and roots are numbers within the group; buffers are flat.

    sent and received are one and the same tensor, or one a part of the other, for calls in place.
    """

    name: str
    rank: int
    size: int

    def refusal(self, op: str, dtype: torch.dtype, redop: str, in_place: bool) -> str | None:
        """Why the transport cannot do this, in a few words; None if it should be able to."""

    def all_reduce(self, sent: torch.Tensor, received: torch.Tensor, redop: str) -> Bound:
        """Reduce `sent` over ranks into every rank's `received`."""

    def all_gather(self, sent: torch.Tensor, received: torch.Tensor) -> Bound:
        """Concatenate every rank's `sent` into `received`, in the order of ranks."""

    def reduce_scatter(self, sent: torch.Tensor, received: torch.Tensor, redop: str) -> Bound:
        """Reduce `sent` over ranks; rank i receives the i-th part."""

    def all_to_all(self, sent: torch.Tensor, received: torch.Tensor) -> Bound:
        """Part j of `sent` goes to rank j, where it becomes part i of `received` (i: the sender)."""

    def all_to_all_v(
        self, sent: torch.Tensor, received: torch.Tensor, to: Sequence[int], source: Sequence[int]
    ) -> Bound:
        """As all_to_all with parts of `to[j]` elements for rank j and `source[i]` elements from rank i."""

    def broadcast(self, buffer: torch.Tensor, root: int) -> Bound:
        """Copy `buffer` of `root` to all ranks."""

    def reduce(self, sent: torch.Tensor, received: torch.Tensor, redop: str, root: int) -> Bound:
        """Reduce `sent` over ranks into `received` of `root`."""

    def gather(self, sent: torch.Tensor, received: torch.Tensor, root: int) -> Bound:
        """Concatenate every rank's `sent` into `received` of `root`."""

    def scatter(self, sent: torch.Tensor, received: torch.Tensor, root: int) -> Bound:
        """Part i of `sent` of `root` goes to rank i's `received`."""

    def send(self, buffer: torch.Tensor, to: int) -> Bound:
        """Send `buffer` to one rank."""

    def receive(self, buffer: torch.Tensor, source: int) -> Bound:
        """Receive into `buffer` from one rank."""

    def exchange(self, sent: torch.Tensor, to: int, received: torch.Tensor, source: int) -> Bound:
        """Send to one rank and receive from one, both at once."""

    def barrier(self) -> Bound:
        """Return when all ranks of the group have come."""

    def wait(self, handle: Any) -> None:
        """Await what `start` gave."""

    def together(self, op: str, calls: Sequence[Bound]) -> Bound:
        """Several calls of one collective begun together and awaited together."""

    def means(self, op: str) -> str:
        """How `together` does it, in a few words."""
