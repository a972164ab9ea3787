"""torch.distributed as a transport, whatever its backend: gloo, nccl, mpi, ucc, xccl, hccl, cncl, mccl, …"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from assay.transports.protocol import ONE_BY_ONE, Bound

# torch 2.13 renamed these two and warns at every use of the old names; 2.6 knows only the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_REDUCTIONS = {
    "sum": dist.ReduceOp.SUM,
    "prod": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "avg": dist.ReduceOp.AVG,
}
_ONLY_IN_PLACE = ("all_reduce", "broadcast", "reduce")
_ONLY_OUT_OF_PLACE = ("all_to_all", "all_to_all_v", "pt2pt_bidirectional", "sendrecv")


class TorchTransport:
    """One process group of torch.distributed. None: the group of all ranks."""

    def __init__(self, backend: str, group: Any = None) -> None:
        self.name = backend
        self._group: Any = group if group is not None else dist.group.WORLD
        self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)

    def refusal(self, op: str, dtype: torch.dtype, redop: str, in_place: bool) -> str | None:
        """See Transport."""
        if in_place and op in _ONLY_OUT_OF_PLACE:
            return f"torch.distributed has no {op} in place"
        if not in_place and op in _ONLY_IN_PLACE:
            return f"torch.distributed has no {op} out of place"
        return None

    def _bind(self, function: Any, *args: Any, **more: Any) -> Bound:
        more["group"] = self._group
        return Bound(partial(function, *args, **more), partial(function, *args, async_op=True, **more))

    def _everywhere(self, rank: int) -> int:
        return int(dist.get_global_rank(self._group, rank))

    def all_reduce(self, sent: torch.Tensor, received: torch.Tensor, redop: str) -> Bound:
        """See Transport."""
        return self._bind(dist.all_reduce, received, op=_REDUCTIONS[redop])

    def all_gather(self, sent: torch.Tensor, received: torch.Tensor) -> Bound:
        """See Transport."""
        return self._bind(_all_gather, received, sent)

    def reduce_scatter(self, sent: torch.Tensor, received: torch.Tensor, redop: str) -> Bound:
        """See Transport."""
        return self._bind(_reduce_scatter, received, sent, op=_REDUCTIONS[redop])

    def all_to_all(self, sent: torch.Tensor, received: torch.Tensor) -> Bound:
        """See Transport."""
        return self._bind(dist.all_to_all_single, received, sent)

    def all_to_all_v(
        self, sent: torch.Tensor, received: torch.Tensor, to: Sequence[int], source: Sequence[int]
    ) -> Bound:
        """See Transport."""
        return self._bind(dist.all_to_all_single, received, sent, list(source), list(to))

    def broadcast(self, buffer: torch.Tensor, root: int) -> Bound:
        """See Transport."""
        return self._bind(dist.broadcast, buffer, src=self._everywhere(root))

    def reduce(self, sent: torch.Tensor, received: torch.Tensor, redop: str, root: int) -> Bound:
        """See Transport."""
        return self._bind(dist.reduce, sent, dst=self._everywhere(root), op=_REDUCTIONS[redop])

    def gather(self, sent: torch.Tensor, received: torch.Tensor, root: int) -> Bound:
        """See Transport."""
        parts = list(received.chunk(self.size)) if self.rank == root else None
        return self._bind(dist.gather, sent, parts, dst=self._everywhere(root))

    def scatter(self, sent: torch.Tensor, received: torch.Tensor, root: int) -> Bound:
        """See Transport."""
        parts = list(sent.chunk(self.size)) if self.rank == root else None
        return self._bind(dist.scatter, received, parts, src=self._everywhere(root))

    def send(self, buffer: torch.Tensor, to: int) -> Bound:
        """See Transport."""
        given: dict[str, Any] = {"dst": self._everywhere(to), "group": self._group}
        return Bound(partial(dist.send, buffer, **given), partial(dist.isend, buffer, **given))

    def receive(self, buffer: torch.Tensor, source: int) -> Bound:
        """See Transport."""
        given: dict[str, Any] = {"src": self._everywhere(source), "group": self._group}
        return Bound(partial(dist.recv, buffer, **given), partial(dist.irecv, buffer, **given))

    def exchange(self, sent: torch.Tensor, to: int, received: torch.Tensor, source: int) -> Bound:
        """See Transport."""
        both = [
            dist.P2POp(dist.isend, sent, self._everywhere(to), self._group),
            dist.P2POp(dist.irecv, received, self._everywhere(source), self._group),
        ]
        start = partial(dist.batch_isend_irecv, both)
        return Bound(lambda: self.wait(start()), start)

    def barrier(self) -> Bound:
        """See Transport."""
        return self._bind(dist.barrier)

    def wait(self, handle: Any) -> None:
        """See Transport."""
        if isinstance(handle, list):
            for one in handle:
                self.wait(one)
        elif handle is not None:  # a backend may have nothing left to await
            handle.wait()

    def means(self, op: str) -> str:
        """See Transport."""
        return f"one group call of {self.name}" if self._groups(op) else ONE_BY_ONE

    def _groups(self, op: str) -> bool:
        # torch's manager groups these three in one call of the backend, and leaves the handles of all others unawaited.
        return op in ("all_reduce", "all_gather", "reduce_scatter") and self.name not in ("gloo", "mpi", "ucc")

    def together(self, op: str, calls: Sequence[Bound]) -> Bound:
        """See Transport."""
        starts = [one.start for one in calls]
        if not self._groups(op):

            def begin() -> list[Any]:
                return [start() for start in starts]

            return Bound(lambda: self.wait(begin()), begin)

        def grouped() -> list[Any]:
            # Private in name (so torch.distributed does not export it), but what FSDP uses to group a backend's calls.
            with dist._coalescing_manager(self._group, async_ops=True) as manager:  # type: ignore[attr-defined]
                for start in starts:
                    start()
            return [manager]

        return Bound(lambda: self.wait(grouped()), grouped)
