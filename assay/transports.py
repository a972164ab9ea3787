"""What moves bytes between ranks, behind one Protocol. The scripts time a transport; they never know which.

Every call returns only when its handle has been awaited; work on a device is complete after `Device.synchronize`.
"""

from typing import Protocol

import torch
import torch.distributed as dist


class Transport(Protocol):
    """Six collectives on tensors of the device. Shapes are flat; sizes divide as assay/bandwidth.py says."""

    name: str

    def all_reduce(self, buffer: torch.Tensor) -> None:
        """Sum `buffer` over ranks, in place."""

    def all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """Concatenate every rank's `part` into `whole`, in the order of ranks."""

    def reduce_scatter(self, part: torch.Tensor, whole: torch.Tensor) -> None:
        """Sum `whole` over ranks; each rank keeps its own part."""

    def all_to_all(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        """Part j of `sent` goes to rank j, where it becomes part i of `received` (i: the sender)."""

    def broadcast(self, buffer: torch.Tensor, root: int) -> None:
        """Copy `buffer` of `root` to all ranks."""

    def send(self, buffer: torch.Tensor, to: int) -> None:
        """Send `buffer` to one rank."""

    def receive(self, buffer: torch.Tensor, source: int) -> None:
        """Receive into `buffer` from one rank."""


# torch 2.13 renamed these two and warns at every use of the old names; 2.6 knows only the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class TorchTransport:
    """torch.distributed's default group, whatever its backend."""

    def __init__(self, backend: str) -> None:
        self.name = backend

    def all_reduce(self, buffer: torch.Tensor) -> None:
        """See Transport."""
        dist.all_reduce(buffer)

    def all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """See Transport."""
        _all_gather(whole, part)

    def reduce_scatter(self, part: torch.Tensor, whole: torch.Tensor) -> None:
        """See Transport."""
        _reduce_scatter(part, whole)

    def all_to_all(self, received: torch.Tensor, sent: torch.Tensor) -> None:
        """See Transport."""
        dist.all_to_all_single(received, sent)

    def broadcast(self, buffer: torch.Tensor, root: int) -> None:
        """See Transport."""
        dist.broadcast(buffer, root)

    def send(self, buffer: torch.Tensor, to: int) -> None:
        """See Transport."""
        dist.send(buffer, to)

    def receive(self, buffer: torch.Tensor, source: int) -> None:
        """See Transport."""
        dist.recv(buffer, source)
