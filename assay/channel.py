"""What ranks use to talk to each other outside timed regions: one Protocol over torch.distributed and MPI.

Control never goes over what is being measured if it can be helped: ranks that wait in an accelerator's collective spin on
the device, and would disturb a rank that measures alone.
"""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


class Channel(Protocol):
    """Small, blocking messages between all ranks of the world. Every rank must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This rank's number."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def barrier(self) -> None:
        """Return when all ranks have come."""

    def gather(self, item: object) -> list[object]:
        """`item` of every rank, on every rank, in the order of ranks. Pickled: for small things."""

    def agree(self, value: int) -> int:
        """Rank 0's value, on every rank: ranks that decide for themselves end up in different calls."""

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The elementwise maximum over ranks of equally long `values` (float64). Cost grows with log n, unlike gather."""

    def send(self, value: float, to: int) -> None:
        """Send one float64 to a rank."""

    def receive(self, source: int) -> float:
        """Receive one float64 from a rank."""


class Alone:
    """A world of one rank."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        """Nobody else comes."""

    def gather(self, item: object) -> list[object]:
        """One item."""
        return [item]

    def agree(self, value: int) -> int:
        """Rank 0 is this rank."""
        return value

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """There are no others."""
        return values

    def send(self, value: float, to: int) -> None:
        """Raises ValueError: there is nobody."""
        raise ValueError("a world of one rank has nobody to send to")

    def receive(self, source: int) -> float:
        """Raises ValueError: there is nobody."""
        raise ValueError("a world of one rank has nobody to receive from")


class TorchChannel:
    """Over a torch process group. device: where its backend wants tensors (the CPU for gloo)."""

    def __init__(self, group: Any, device: "torch.device") -> None:
        import torch.distributed as dist

        self._group, self._device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def barrier(self) -> None:
        """See Channel."""
        import torch.distributed as dist

        dist.barrier(self._group)

    def gather(self, item: object) -> list[object]:
        """See Channel."""
        import torch.distributed as dist

        items: list[object] = [None] * self.size
        dist.all_gather_object(items, item, self._group)
        return items

    def agree(self, value: int) -> int:
        """See Channel."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor([value], dtype=torch.int64, device=self._device)
        dist.broadcast(tensor, 0, self._group)
        return int(tensor.item())

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """See Channel."""
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(np.array(values, dtype=np.float64)).to(self._device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self._group)
        return np.asarray(tensor.cpu().numpy(), dtype=np.float64)

    def send(self, value: float, to: int) -> None:
        """See Channel."""
        import torch
        import torch.distributed as dist

        dist.send(torch.tensor([value], dtype=torch.float64, device=self._device), to, self._group)

    def receive(self, source: int) -> float:
        """See Channel."""
        import torch
        import torch.distributed as dist

        tensor = torch.empty(1, dtype=torch.float64, device=self._device)
        dist.recv(tensor, source, self._group)
        return float(tensor.item())


class MpiChannel:
    """Over a communicator of mpi4py that nothing else uses."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def barrier(self) -> None:
        """See Channel."""
        self._comm.Barrier()

    def gather(self, item: object) -> list[object]:
        """See Channel."""
        return list(self._comm.allgather(item))

    def agree(self, value: int) -> int:
        """See Channel."""
        return int(self._comm.bcast(value, 0))

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """See Channel."""
        from mpi4py import MPI

        most = np.array(values, dtype=np.float64)
        self._comm.Allreduce(MPI.IN_PLACE, most, MPI.MAX)
        return most

    def send(self, value: float, to: int) -> None:
        """See Channel."""
        self._comm.Send(np.array([value], dtype=np.float64), to)

    def receive(self, source: int) -> float:
        """See Channel."""
        cell = np.empty(1, dtype=np.float64)
        self._comm.Recv(cell, source)
        return float(cell[0])
