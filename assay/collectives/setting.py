"""One measurement's circumstances on one rank, and its buffers."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from assay.traffic import Matrix, counts, uneven

_EXACT = {  # largest integer up to which every integer is exact
    torch.float64: 1 << 53,
    torch.float32: 1 << 24,
    torch.float16: 1 << 11,
    torch.bfloat16: 1 << 8,
    torch.int64: 1 << 62,
    torch.int32: 1 << 31,
    torch.uint8: 255,
}


@dataclass(frozen=True)
class Setting:
    """Who measures what. rank, world, pair: within the group; pair: the two ranks of pt2pt. count: elements of S.

    matrix: of all_to_all_v, an uneven one without it.
    """

    rank: int
    world: int
    pair: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    seed: int
    count: int
    redop: str = "sum"
    matrix: Matrix | None = None
    root: int = 0

    @property
    def levels(self) -> int:
        """Pattern values are 0 … levels−1, few enough that a sum over all ranks is exact in the dtype."""
        return max(2, min(1 << 12, _EXACT[self.dtype] // self.world))

    @property
    def stride(self) -> int:
        """Every stride-th rank contributes at a position, the others 0: 1 unless the world is too large for the dtype.

        bfloat16 counts exactly to 256 only; with 512 ranks every second one contributes at even positions, the others
        at odd ones, and a rank that was left out still shows.
        """
        return -(-(self.levels - 1) * self.world // _EXACT[self.dtype])

    @property
    def partner(self) -> int:
        """The other rank of the pair."""
        return self.pair[1] if self.rank == self.pair[0] else self.pair[0]

    @property
    def tolerance(self) -> float:
        """By how much an element may differ, relative: 0 but for averages of floats, which may be scaled before the sum."""
        if self.redop != "avg" or not self.dtype.is_floating_point:
            return 0.0
        return 4 * torch.finfo(self.dtype).eps

    @property
    def average_levels(self) -> int:
        """Distinct values of an average: world times each must be a number that the dtype can hold."""
        most = 255 if self.dtype == torch.uint8 else 1 << 15
        return max(1, min(64, most // self.world))

    @property
    def traffic(self) -> NDArray[np.int64]:
        """Elements that rank i (row) sends to rank j (column) in all_to_all_v. Made anew each time: it has world² entries."""
        return counts(uneven(self.world) if self.matrix is None else self.matrix, self.count)

    @property
    def largest_buffer(self) -> int:
        """Elements of the largest buffer that any rank sends or receives in all_to_all_v."""
        traffic = self.traffic
        return int(max(traffic.sum(axis=0).max(), traffic.sum(axis=1).max()))


@dataclass(frozen=True)
class Buffers:
    """`sent` is filled before a call and `received` read after it. In place: one tensor, or one a part of the other."""

    sent: torch.Tensor
    received: torch.Tensor


def allocate(setting: Setting, sent: int, received: int, in_place: bool) -> Buffers:
    """Buffers of so many elements. In place, the smaller one is this rank's own part of the larger one."""

    def new(count: int) -> torch.Tensor:
        return torch.empty(count, dtype=setting.dtype, device=setting.device)

    if not in_place or not sent or not received:
        return Buffers(new(sent), new(received))
    whole, part = new(max(sent, received)), min(sent, received)
    own = whole if sent == received else whole[setting.rank * part : (setting.rank + 1) * part]
    return Buffers(own, whole) if sent < received else Buffers(whole, own)
