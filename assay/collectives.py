"""The collectives as they are run: buffers, the call, and what every element must hold afterwards.

A collective is a record of small functions, beside its bandwidth formula in assay/bandwidth.py. The data pattern is a
function of rank and position, so that a part that went to the wrong place, came from the wrong rank or was left out
shows, which a constant fill cannot.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from assay.transports import Transport

_TILE = 1_048_583  # prime, so that no part of a buffer starts where the pattern repeats
_EVALUATIONS = 1 << 22  # pattern values computed per check; larger buffers are checked at random positions
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
    """One measurement's circumstances. pair: the two ranks of pt2pt. levels: distinct values of the pattern."""

    rank: int
    world: int
    pair: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    seed: int

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


@dataclass(frozen=True)
class Buffers:
    """`sent` is filled before a call and `received` read after it; one and the same tensor for calls in place."""

    sent: torch.Tensor
    received: torch.Tensor


@dataclass(frozen=True)
class Operation:
    """One collective. `expected` gives the values at positions of `received`; `takes_part` says which ranks run it."""

    allocate: Callable[[Setting, int], Buffers]
    call: Callable[[Setting, Transport, Buffers], None]
    expected: Callable[[Setting, int, torch.Tensor], torch.Tensor]
    takes_part: Callable[[Setting], bool] = lambda setting: True
    reduces: bool = False


def pattern(setting: Setting, rank: int, positions: torch.Tensor) -> torch.Tensor:
    """The values that `rank` sends at `positions` (int64, host), as int64 in 0 … levels−1.

    An integer hash (multiply, shift, xor) of position and rank, repeating every 1,048,583 positions.
    """
    value = positions % _TILE * 0x9E3779B1 + (rank + 1) * 0x85EBCA77 + setting.seed * 0xC2B2AE3D
    value = (value ^ (value >> 15)) * 0x2C1B3C6D
    value = (value ^ (value >> 13)) & 0x7FFFFFFF
    contributes = (positions + rank) % setting.stride == 0
    return value % setting.levels * contributes


def fill(setting: Setting, buffers: Buffers) -> None:
    """Write this rank's pattern into `sent`, and a value that is no pattern into a separate `received`."""
    if buffers.received.data_ptr() != buffers.sent.data_ptr():
        buffers.received.fill_(setting.levels + 1)
    tile = pattern(setting, setting.rank, torch.arange(min(_TILE, buffers.sent.numel())))
    tile = tile.to(setting.dtype).to(setting.device)
    for start in range(0, buffers.sent.numel(), _TILE):
        piece = buffers.sent[start : start + _TILE]
        piece.copy_(tile[: piece.numel()])


@dataclass(frozen=True)
class Check:
    """Elements of `received` that are wrong, among those looked at; `total` is the buffer's length."""

    wrong: int
    looked_at: int
    total: int
    first_wrong: int | None


def check(operation: Operation, setting: Setting, buffers: Buffers) -> Check:
    """Compare `received`, after one call on freshly filled buffers, with what it must hold."""
    total = buffers.received.numel()
    affordable = max(1024, _EVALUATIONS // (setting.world if operation.reduces else 1))
    if total <= affordable:
        positions = torch.arange(total)
    else:
        generator = torch.Generator().manual_seed(setting.seed)
        positions = torch.randint(total, (affordable,), generator=generator)
        positions[0], positions[1] = 0, total - 1
    got = buffers.received[positions.to(setting.device)].cpu()
    wanted = operation.expected(setting, total, positions)
    bad = got.double() != wanted.to(setting.dtype).double()
    wrong = int(bad.sum())
    first = int(positions[bad].min()) if wrong else None
    return Check(wrong, len(positions), total, first)


def _in_place(setting: Setting, count: int) -> Buffers:
    buffer = torch.empty(count, dtype=setting.dtype, device=setting.device)
    return Buffers(buffer, buffer)


def _two(setting: Setting, sent: int, received: int) -> Buffers:
    return Buffers(
        torch.empty(sent, dtype=setting.dtype, device=setting.device),
        torch.empty(received, dtype=setting.dtype, device=setting.device),
    )


def _sum_of_patterns(setting: Setting, positions: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(positions)
    for rank in range(setting.world):
        total += pattern(setting, rank, positions)
    return total


def _from_each(setting: Setting, positions: torch.Tensor, part: int, offset: int) -> torch.Tensor:
    # Position p of the result is position p % part (+ offset) of rank p // part.
    values = torch.empty_like(positions)
    ranks = positions // part
    for rank in range(setting.world):
        here = ranks == rank
        values[here] = pattern(setting, rank, positions[here] % part + offset)
    return values


def _move(setting: Setting, transport: Transport, buffers: Buffers) -> None:
    source, target = setting.pair
    if setting.rank == source:
        transport.send(buffers.sent, target)
    elif setting.rank == target:
        transport.receive(buffers.received, source)


def _moved(setting: Setting, count: int, positions: torch.Tensor) -> torch.Tensor:
    # The sender's buffer is untouched, so the pair holds the sender's pattern at both ends.
    return pattern(setting, setting.pair[0], positions)


OPERATIONS: dict[str, Operation] = {
    "all_reduce": Operation(
        allocate=_in_place,
        call=lambda setting, transport, buffers: transport.all_reduce(buffers.sent),
        expected=lambda setting, count, positions: _sum_of_patterns(setting, positions),
        reduces=True,
    ),
    "all_gather": Operation(
        allocate=lambda setting, count: _two(setting, count // setting.world, count),
        call=lambda setting, transport, buffers: transport.all_gather(buffers.received, buffers.sent),
        expected=lambda setting, count, positions: _from_each(setting, positions, count // setting.world, 0),
    ),
    "reduce_scatter": Operation(
        allocate=lambda setting, count: _two(setting, count, count // setting.world),
        call=lambda setting, transport, buffers: transport.reduce_scatter(buffers.received, buffers.sent),
        expected=lambda setting, part, positions: _sum_of_patterns(setting, positions + setting.rank * part),
        reduces=True,
    ),
    "all_to_all": Operation(
        allocate=lambda setting, count: _two(setting, count, count),
        call=lambda setting, transport, buffers: transport.all_to_all(buffers.received, buffers.sent),
        expected=lambda setting, count, positions: _from_each(
            setting, positions, count // setting.world, setting.rank * (count // setting.world)
        ),
    ),
    "broadcast": Operation(
        allocate=_in_place,
        call=lambda setting, transport, buffers: transport.broadcast(buffers.sent, 0),
        expected=lambda setting, count, positions: pattern(setting, 0, positions),
    ),
    "pt2pt": Operation(
        allocate=_in_place,
        call=_move,
        expected=_moved,
        takes_part=lambda setting: setting.rank in setting.pair,
    ),
}
