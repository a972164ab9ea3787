"""What ranks use to talk to each other outside timed regions: one Protocol over torch.distributed and MPI.

Control never goes over what is being measured if it can be helped: ranks that wait in an accelerator's collective spin on
the device, and would disturb a rank that measures alone.

Nothing here is all to all. What every rank has to give climbs a binary tree to rank 0, what all must hear comes down one:
a rank talks to log n others, and what it receives does not grow with the ranks, except on rank 0. docs/scale.md has the
figures.
"""

import pickle
from collections.abc import Callable, Sequence
from itertools import chain, groupby, repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Values = NDArray[np.float64]
Run = tuple[bytes, int]
"""An item, pickled, and how many ranks in a row gave it."""


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

    def collect(self, item: T) -> list[T] | None:
        """`item` of every rank in the order of ranks, on rank 0; None on the others. Pickled: for small things.

        Ranks in a row that give the same share one object: it is not to be changed.
        """

    def broadcast(self, item: T, source: int = 0) -> T:
        """`item` of rank `source`, on every rank; what the others give is not looked at. Pickled."""

    def gather(self, item: object) -> list[object]:
        """`item` of every rank, on every rank, in the order of ranks. Only for what ranks of a host share.

        It is told as runs of equal items, so that a rank receives as much as there are hosts. Whatever differs from rank
        to rank would make it as much as there are ranks, and the whole quadratic: sum it, take the largest, collect it.
        """

    def agree(self, value: int) -> int:
        """Rank 0's value, on every rank: ranks that decide for themselves end up in different calls."""

    def largest(self, values: Values) -> Values:
        """The elementwise maximum over ranks of equally long `values` (float64), on every rank."""

    def total(self, values: Values) -> Values:
        """The elementwise sum over ranks of equally long `values`, on every rank. Exact for whole numbers below 2^53."""

    def send(self, value: float, to: int) -> None:
        """Send one float64 to a rank."""

    def receive(self, source: int) -> float:
        """Receive one float64 from a rank."""


def packed(item: object) -> bytes:
    """As it is sent."""
    return pickle.dumps(item)


def unpacked(data: bytes) -> Any:
    """What was packed."""
    return pickle.loads(data)  # noqa: S301 - from ranks of this very run, over the links that it measures


def first_said(channel: Channel, said: str) -> str | None:
    """What the lowest rank has to say, on every rank; None if all ranks give an empty text. All ranks call it."""
    lowest = -channel.largest(np.array([-channel.rank if said else -np.inf]))[0]
    return None if np.isinf(lowest) else channel.broadcast(said, int(lowest))


def joined(runs: Sequence[Run], more: Sequence[Run]) -> list[Run]:
    """The runs of both, one behind the other; equal ones that meet become one."""
    if runs and more and runs[-1][0] == more[0][0]:
        return [*runs[:-1], (runs[-1][0], runs[-1][1] + more[0][1]), *more[1:]]
    return [*runs, *more]


def spread_out(runs: Sequence[Run]) -> list[Any]:
    """The item of every rank."""
    return list(chain.from_iterable(repeat(unpacked(item), count) for item, count in runs))


class Alone:
    """A world of one rank."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        """Nobody else comes."""

    def collect(self, item: T) -> list[T] | None:
        """One item."""
        return [item]

    def broadcast(self, item: T, source: int = 0) -> T:
        """It has been heard."""
        return item

    def gather(self, item: object) -> list[object]:
        """One item."""
        return [item]

    def agree(self, value: int) -> int:
        """Rank 0 is this rank."""
        return value

    def largest(self, values: Values) -> Values:
        """There are no others."""
        return values

    def total(self, values: Values) -> Values:
        """There are no others."""
        return values

    def send(self, value: float, to: int) -> None:
        """Raises ValueError: there is nobody."""
        raise ValueError("a world of one rank has nobody to send to")

    def receive(self, source: int) -> float:
        """Raises ValueError: there is nobody."""
        raise ValueError("a world of one rank has nobody to receive from")


class TorchChannel:
    """Over a torch process group. device: where its backend wants tensors (the CPU for gloo).

    Only broadcast, barrier and single messages of torch are used. gloo's all_reduce passes round a ring, 2n messages one
    after the other, its gather has rank 0 connected to everyone, and torch's all_gather_object is quadratic.
    """

    def __init__(self, group: Any, device: "torch.device") -> None:
        import torch.distributed as dist

        self._group, self._device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def barrier(self) -> None:
        """See Channel."""
        import torch.distributed as dist

        dist.barrier(self._group)

    def collect(self, item: T) -> list[T] | None:
        """See Channel."""
        runs = self._runs(item)
        return None if runs is None else spread_out(unpacked(runs))

    def broadcast(self, item: T, source: int = 0) -> T:
        """See Channel."""
        told: T = unpacked(self._down(packed(item) if self.rank == source else b"", source))
        return told

    def gather(self, item: object) -> list[object]:
        """See Channel."""
        return spread_out(unpacked(self._down(self._runs(item) or b"", 0)))

    def agree(self, value: int) -> int:
        """See Channel."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor([value], dtype=torch.int64, device=self._device)
        dist.broadcast(tensor, 0, self._group)
        return int(tensor.item())

    def largest(self, values: Values) -> Values:
        """See Channel."""
        return self._reduced(values, np.maximum)

    def total(self, values: Values) -> Values:
        """See Channel."""
        return self._reduced(values, np.add)

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

    def _runs(self, item: object) -> bytes | None:
        def merged(ours: bytes, theirs: bytes) -> bytes:
            return packed(joined(unpacked(ours), unpacked(theirs)))

        def receive(source: int) -> bytes:
            return self._receive_bytes(int(self.receive(source)), source)

        def send(payload: bytes, to: int) -> None:
            self.send(float(len(payload)), to)
            self._send_bytes(payload, to)

        return self._up(packed([(packed(item), 1)]), merged, receive, send)

    def _reduced(self, values: Values, fold: Callable[[Values, Values], Values]) -> Values:
        own = np.array(values, dtype=np.float64)
        count = own.nbytes

        def receive(source: int) -> Values:
            return np.frombuffer(self._receive_bytes(count, source)).reshape(own.shape)

        def send(payload: Values, to: int) -> None:
            self._send_bytes(payload.tobytes(), to)

        folded = self._up(own, fold, receive, send)
        told = self._down_known(b"" if folded is None else folded.tobytes(), count, 0)
        return np.array(np.frombuffer(told)).reshape(own.shape)

    def _up(
        self,
        own: T,
        merge: Callable[[T, T], T],
        receive: Callable[[int], T],
        send: Callable[[T, int], None],
    ) -> T | None:
        """What all ranks have, merged in their order, on rank 0: a binomial tree. A parent is lower than its children."""
        distance = 1
        while distance < self.size:
            if self.rank & distance:
                send(own, self.rank - distance)
                return None
            if self.rank + distance < self.size:
                own = merge(own, receive(self.rank + distance))
            distance *= 2
        return own

    def _down(self, payload: bytes, source: int) -> bytes:
        length = self._down_known(len(payload).to_bytes(8, "little"), 8, source)
        return self._down_known(payload, int.from_bytes(length, "little"), source)

    def _down_known(self, payload: bytes, count: int, source: int) -> bytes:
        import torch.distributed as dist

        if count == 0:
            return b""
        tensor = self._bytes(payload if self.rank == source else bytes(count))
        dist.broadcast(tensor, source, self._group)
        return tensor.cpu().numpy().tobytes()

    def _send_bytes(self, payload: bytes, to: int) -> None:
        import torch.distributed as dist

        if payload:
            dist.send(self._bytes(payload), to, self._group)

    def _receive_bytes(self, count: int, source: int) -> bytes:
        import torch.distributed as dist

        if count == 0:
            return b""
        tensor = self._bytes(bytes(count))
        dist.recv(tensor, source, self._group)
        return tensor.cpu().numpy().tobytes()

    def _bytes(self, payload: bytes) -> "torch.Tensor":
        import torch

        return torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(self._device)


class MpiChannel:
    """Over a communicator of mpi4py that nothing else uses. MPI's own trees serve."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def barrier(self) -> None:
        """See Channel."""
        self._comm.Barrier()

    def collect(self, item: T) -> list[T] | None:
        """See Channel."""
        items: list[T] | None = self._comm.gather(item, 0)
        return items

    def broadcast(self, item: T, source: int = 0) -> T:
        """See Channel."""
        told: T = self._comm.bcast(item if self.rank == source else None, source)
        return told

    def gather(self, item: object) -> list[object]:
        """See Channel."""
        items = self._comm.gather(packed(item), 0) or ()
        runs = [(one, sum(1 for _ in same)) for one, same in groupby(items)]
        return spread_out(self._comm.bcast(runs, 0))

    def agree(self, value: int) -> int:
        """See Channel."""
        return int(self._comm.bcast(value, 0))

    def largest(self, values: Values) -> Values:
        """See Channel."""
        from mpi4py import MPI

        return self._reduced(values, MPI.MAX)

    def total(self, values: Values) -> Values:
        """See Channel."""
        from mpi4py import MPI

        return self._reduced(values, MPI.SUM)

    def send(self, value: float, to: int) -> None:
        """See Channel."""
        self._comm.Send(np.array([value], dtype=np.float64), to)

    def receive(self, source: int) -> float:
        """See Channel."""
        cell = np.empty(1, dtype=np.float64)
        self._comm.Recv(cell, source)
        return float(cell[0])

    def _reduced(self, values: Values, how: Any) -> Values:
        from mpi4py import MPI

        reduced = np.array(values, dtype=np.float64)
        self._comm.Allreduce(MPI.IN_PLACE, reduced, how)
        return reduced
