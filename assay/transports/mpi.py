"""MPI itself as a transport, through mpi4py: host buffers everywhere, device buffers where the MPI is device-aware."""

import ctypes
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from mpi4py import MPI

from assay.transports.protocol import ONE_BY_ONE, Bound
from assay.world import MPI_BACKEND

_TYPES = {
    torch.float32: MPI.FLOAT,
    torch.float64: MPI.DOUBLE,
    torch.int32: MPI.INT32_T,
    torch.int64: MPI.INT64_T,
    torch.uint8: MPI.UINT8_T,
}
_REDUCTIONS = {"sum": MPI.SUM, "prod": MPI.PROD, "min": MPI.MIN, "max": MPI.MAX}
_REDUCING = ("all_reduce", "reduce_scatter", "reduce")
_ONLY_IN_PLACE = ("broadcast",)
# MPI's reduce_scatter in place leaves every rank's result at the buffer's beginning, NCCL's at the rank's own part.
_ONLY_OUT_OF_PLACE = ("reduce_scatter", "all_to_all_v", "pt2pt_bidirectional", "sendrecv")


def is_device_aware() -> bool:
    """Whether this MPI takes device memory: it says so itself, or ASSAY_MPI_DEVICE_AWARE=1 says it for a silent one."""
    if os.environ.get("ASSAY_MPI_DEVICE_AWARE") == "1":
        return True
    library = ctypes.CDLL(MPI.__file__)  # a symbol is searched in what it links too, which is the MPI
    for name in ("MPIX_Query_cuda_support", "MPIX_Query_rocm_support"):
        ask = getattr(library, name, None)
        if ask is not None and ask() == 1:
            return True
    return False


class MpiTransport:
    """One communicator of mpi4py."""

    name = MPI_BACKEND

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def refusal(self, op: str, dtype: torch.dtype, redop: str, in_place: bool) -> str | None:
        """See Transport."""
        if op in _REDUCING and dtype not in _TYPES:
            return f"MPI has no reduction of {str(dtype).removeprefix('torch.')}"
        if op in _REDUCING and redop not in _REDUCTIONS:
            return f"MPI has no {redop}"
        if in_place and op in _ONLY_OUT_OF_PLACE:
            return f"MPI has no {op} in place"
        if not in_place and op in _ONLY_IN_PLACE:
            return f"MPI has no {op} out of place"
        return None

    def _spec(self, tensor: torch.Tensor) -> list[Any]:
        kind = _TYPES.get(tensor.dtype, MPI.UINT16_T)  # float16 and bfloat16 are only moved
        known = tensor if tensor.dtype in _TYPES else tensor.view(torch.int16)
        return [known.numpy() if known.device.type == "cpu" else known, kind]

    def _parts(self, tensor: torch.Tensor, counts: Sequence[int]) -> list[Any]:
        data, kind = self._spec(tensor)
        starts = [sum(counts[:rank]) for rank in range(len(counts))]
        return [data, (list(counts), starts), kind]

    def all_reduce(self, sent: torch.Tensor, received: torch.Tensor, redop: str) -> Bound:
        """See Transport."""
        source = MPI.IN_PLACE if sent is received else self._spec(sent)
        args = (source, self._spec(received), _REDUCTIONS[redop])
        return Bound(partial(self._comm.Allreduce, *args), partial(self._comm.Iallreduce, *args))

    def all_gather(self, sent: torch.Tensor, received: torch.Tensor) -> Bound:
        """See Transport."""
        args = (MPI.IN_PLACE if _share_memory(sent, received) else self._spec(sent), self._spec(received))
        return Bound(partial(self._comm.Allgather, *args), partial(self._comm.Iallgather, *args))

    def reduce_scatter(self, sent: torch.Tensor, received: torch.Tensor, redop: str) -> Bound:
        """See Transport."""
        args = (self._spec(sent), self._spec(received), _REDUCTIONS[redop])
        return Bound(partial(self._comm.Reduce_scatter_block, *args), partial(self._comm.Ireduce_scatter_block, *args))

    def all_to_all(self, sent: torch.Tensor, received: torch.Tensor) -> Bound:
        """See Transport."""
        args = (MPI.IN_PLACE if sent is received else self._spec(sent), self._spec(received))
        return Bound(partial(self._comm.Alltoall, *args), partial(self._comm.Ialltoall, *args))

    def all_to_all_v(
        self, sent: torch.Tensor, received: torch.Tensor, to: Sequence[int], source: Sequence[int]
    ) -> Bound:
        """See Transport."""
        args = (self._parts(sent, to), self._parts(received, source))
        return Bound(partial(self._comm.Alltoallv, *args), partial(self._comm.Ialltoallv, *args))

    def broadcast(self, buffer: torch.Tensor, root: int) -> Bound:
        """See Transport."""
        args = (self._spec(buffer), root)
        return Bound(partial(self._comm.Bcast, *args), partial(self._comm.Ibcast, *args))

    def reduce(self, sent: torch.Tensor, received: torch.Tensor, redop: str, root: int) -> Bound:
        """See Transport."""
        at_root = self.rank == root
        source = MPI.IN_PLACE if at_root and sent is received else self._spec(sent)
        args = (source, self._spec(received) if at_root else None, _REDUCTIONS[redop], root)
        return Bound(partial(self._comm.Reduce, *args), partial(self._comm.Ireduce, *args))

    def gather(self, sent: torch.Tensor, received: torch.Tensor, root: int) -> Bound:
        """See Transport."""
        at_root = self.rank == root
        source = MPI.IN_PLACE if at_root and _share_memory(sent, received) else self._spec(sent)
        args = (source, self._spec(received) if at_root else None, root)
        return Bound(partial(self._comm.Gather, *args), partial(self._comm.Igather, *args))

    def scatter(self, sent: torch.Tensor, received: torch.Tensor, root: int) -> Bound:
        """See Transport."""
        at_root = self.rank == root
        target = MPI.IN_PLACE if at_root and _share_memory(sent, received) else self._spec(received)
        args = (self._spec(sent) if at_root else None, target, root)
        return Bound(partial(self._comm.Scatter, *args), partial(self._comm.Iscatter, *args))

    def send(self, buffer: torch.Tensor, to: int) -> Bound:
        """See Transport."""
        args = (self._spec(buffer), to)
        return Bound(partial(self._comm.Send, *args), partial(self._comm.Isend, *args))

    def receive(self, buffer: torch.Tensor, source: int) -> Bound:
        """See Transport."""
        args = (self._spec(buffer), source)
        return Bound(partial(self._comm.Recv, *args), partial(self._comm.Irecv, *args))

    def exchange(self, sent: torch.Tensor, to: int, received: torch.Tensor, source: int) -> Bound:
        """See Transport."""
        outgoing, incoming = self._spec(sent), self._spec(received)
        both = partial(self._comm.Sendrecv, outgoing, to, 0, incoming, source, 0)
        isend, irecv = partial(self._comm.Isend, outgoing, to), partial(self._comm.Irecv, incoming, source)
        return Bound(both, lambda: [irecv(), isend()])

    def barrier(self) -> Bound:
        """See Transport."""
        return Bound(self._comm.Barrier, self._comm.Ibarrier)

    def wait(self, handle: Any) -> None:
        """See Transport."""
        if isinstance(handle, list):
            MPI.Request.Waitall(handle)
        else:
            handle.Wait()

    def means(self, op: str) -> str:
        """See Transport. MPI has no grouped calls."""
        return ONE_BY_ONE

    def together(self, op: str, calls: Sequence[Bound]) -> Bound:
        """See Transport."""
        starts = [one.start for one in calls]

        def begin() -> list[Any]:
            handles: list[Any] = []
            for start in starts:
                handle = start()
                handles += handle if isinstance(handle, list) else [handle]
            return handles

        return Bound(lambda: self.wait(begin()), begin)


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
