"""The data of a measurement and their check.

The pattern is a function of rank and position, so that a part that went to the wrong place, came from the wrong rank or
was left out shows, which a constant fill cannot.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from assay.collectives.setting import Buffers, Setting

_TILE = 1_048_583  # prime, so that no part of a buffer starts where the pattern repeats
EVALUATIONS = 1 << 22  # pattern values computed per check; larger buffers are checked at random positions

Expected = Callable[[Setting, torch.Tensor], torch.Tensor]
"""(setting, positions in `received`) → the values that must stand there, float64 or int64, on the host."""


def pattern(setting: Setting, rank: int | torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The values that `rank` (one, or one for each position) sends at `positions` (int64, host), as int64.

    An integer hash (multiply, shift, xor) of position and rank, repeating every 1,048,583 positions; 0 … levels−1. For
    products one rank a position sends a factor of 2 … levels, the others 1: more would overflow. For averages one rank a
    position sends a multiple of the number of ranks, the others 0: the average is whole.
    """
    value = positions % _TILE * 0x9E3779B1 + (rank + 1) * 0x85EBCA77 + setting.seed * 0xC2B2AE3D
    value = (value ^ (value >> 15)) * 0x2C1B3C6D
    value = (value ^ (value >> 13)) & 0x7FFFFFFF
    if setting.redop in ("prod", "avg"):
        ours = (positions % _TILE) % setting.world == rank
        if setting.redop == "avg":
            return torch.where(ours, (1 + value % setting.average_levels) * setting.world, torch.zeros_like(value))
        return torch.where(ours, 2 + value % (setting.levels - 1), torch.ones_like(value))
    contributes = (positions + rank) % setting.stride == 0
    return value % setting.levels * contributes


def reduced(setting: Setting, positions: torch.Tensor) -> torch.Tensor:
    """What a reduction over all ranks gives at `positions`, as int64."""
    if setting.redop in ("prod", "avg"):  # one rank a position decides
        deciding = pattern(setting, positions % _TILE % setting.world, positions)
        return deciding // setting.world if setting.redop == "avg" else deciding
    total = pattern(setting, 0, positions)
    for rank in range(1, setting.world):
        own = pattern(setting, rank, positions)
        if setting.redop == "min":
            total = torch.minimum(total, own)
        elif setting.redop == "max":
            total = torch.maximum(total, own)
        else:
            total += own
    return total


def fill(setting: Setting, buffers: Buffers) -> None:
    """Write this rank's pattern into `sent`, and a value that is no pattern into what else there is of `received`."""
    if buffers.received is not buffers.sent:
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


def check(expected: Expected, cost: int, setting: Setting, buffers: Buffers, evaluations: int = EVALUATIONS) -> Check:
    """Compare `received`, after one call on freshly filled buffers, with what it must hold.

    cost: pattern values that one expected element takes. evaluations: how many may be computed.
    """
    total = buffers.received.numel()
    if total == 0:
        return Check(0, 0, 0, None)
    affordable = max(1024, evaluations // cost)
    if total <= affordable:
        positions = torch.arange(total)
    else:
        generator = torch.Generator().manual_seed(setting.seed)
        positions = torch.randint(total, (affordable,), generator=generator)
        positions[0], positions[1] = 0, total - 1
    got = buffers.received[positions.to(setting.device)].cpu().double()
    wanted = expected(setting, positions).to(setting.dtype).double()
    bad = ~((got - wanted).abs() <= setting.tolerance * wanted.abs())  # a NaN is wrong too
    wrong = int(bad.sum())
    first = int(positions[bad].min()) if wrong else None
    return Check(wrong, len(positions), total, first)
