"""The table of collectives: lengths of the buffers, the call, and what every element must hold afterwards.

A collective is a record of small functions; its bandwidth formula stands in assay/bandwidth.py under the same name.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from assay.collectives.pattern import EVALUATIONS, Check, Expected, check, pattern, reduced
from assay.collectives.setting import Buffers, Setting, allocate
from assay.transports import Bound, Transport


@dataclass(frozen=True)
class Operation:
    """One collective.

    lengths: elements of `sent` and `received` on this rank. in_place: how it is called unless asked otherwise.
    holds: whether this rank's `received` means anything afterwards. takes_part: which ranks call it.
    """

    lengths: Callable[[Setting], tuple[int, int]]
    bind: Callable[[Setting, Transport, Buffers], Bound]
    expected: Expected
    in_place: bool = False
    reduces: bool = False
    takes_part: Callable[[Setting], bool] = lambda setting: True
    holds: Callable[[Setting], bool] = lambda setting: True

    def allocate(self, setting: Setting, in_place: bool | None = None) -> Buffers:
        """This rank's buffers."""
        sent, received = self.lengths(setting)
        return allocate(setting, sent, received, self.in_place if in_place is None else in_place)

    def elements(self, setting: Setting, in_place: bool) -> int:
        """Elements that this rank's buffers take together."""
        sent, received = self.lengths(setting)
        return max(sent, received) if in_place else sent + received

    def check(self, setting: Setting, buffers: Buffers, evaluations: int = EVALUATIONS) -> Check:
        """Compare `received` after one call on fresh data with what it must hold on this rank."""
        if not self.takes_part(setting) or not self.holds(setting):
            return Check(0, 0, 0, None)
        every_rank = self.reduces and setting.redop in ("sum", "min", "max")
        return check(self.expected, setting.world if every_rank else 1, setting, buffers, evaluations)


def _same(setting: Setting) -> tuple[int, int]:
    return setting.count, setting.count


def _from_each(setting: Setting, positions: torch.Tensor, offset: int) -> torch.Tensor:
    # Position p of the result is position p % part (+ offset) of rank p // part.
    part = _part(setting)
    return pattern(setting, positions // part, positions % part + offset)


def _from_each_by_traffic(setting: Setting, positions: torch.Tensor) -> torch.Tensor:
    traffic = setting.traffic
    ends = torch.from_numpy(np.cumsum(traffic[:, setting.rank]))
    ranks = torch.searchsorted(ends, positions, right=True)
    begins = ends - torch.from_numpy(traffic[:, setting.rank])
    ahead = torch.from_numpy(
        traffic[:, : setting.rank].sum(axis=1)
    )  # what the sender's buffer holds for ranks before us
    return pattern(setting, ranks, positions - begins[ranks] + ahead[ranks])


def _to(setting: Setting) -> list[int]:
    return [int(count) for count in setting.traffic[setting.rank]]


def _source(setting: Setting) -> list[int]:
    return [int(count) for count in setting.traffic[:, setting.rank]]


def _part(setting: Setting) -> int:
    return setting.count // setting.world


def _send_or_receive(setting: Setting, transport: Transport, buffers: Buffers) -> Bound:
    if setting.rank == setting.pair[0]:
        return transport.send(buffers.sent, setting.pair[1])
    return transport.receive(buffers.received, setting.pair[0])


def _neighbours(setting: Setting) -> tuple[int, int]:
    return (setting.rank + 1) % setting.world, (setting.rank - 1) % setting.world


def _is_root(setting: Setting) -> bool:
    return setting.rank == setting.root


def _in_pair(setting: Setting) -> bool:
    return setting.rank in setting.pair


OPERATIONS: dict[str, Operation] = {
    "all_reduce": Operation(
        lengths=_same,
        bind=lambda s, transport, b: transport.all_reduce(b.sent, b.received, s.redop),
        expected=lambda s, positions: reduced(s, positions),
        in_place=True,
        reduces=True,
    ),
    "all_gather": Operation(
        lengths=lambda s: (_part(s), s.count),
        bind=lambda s, transport, b: transport.all_gather(b.sent, b.received),
        expected=lambda s, positions: _from_each(s, positions, 0),
    ),
    "reduce_scatter": Operation(
        lengths=lambda s: (s.count, _part(s)),
        bind=lambda s, transport, b: transport.reduce_scatter(b.sent, b.received, s.redop),
        expected=lambda s, positions: reduced(s, positions + s.rank * _part(s)),
        reduces=True,
    ),
    "all_to_all": Operation(
        lengths=_same,
        bind=lambda s, transport, b: transport.all_to_all(b.sent, b.received),
        expected=lambda s, positions: _from_each(s, positions, s.rank * _part(s)),
    ),
    "all_to_all_v": Operation(
        lengths=lambda s: (sum(_to(s)), sum(_source(s))),
        bind=lambda s, transport, b: transport.all_to_all_v(b.sent, b.received, _to(s), _source(s)),
        expected=_from_each_by_traffic,
    ),
    "broadcast": Operation(
        lengths=_same,
        bind=lambda s, transport, b: transport.broadcast(b.sent, s.root),
        expected=lambda s, positions: pattern(s, s.root, positions),
        in_place=True,
    ),
    "reduce": Operation(
        lengths=lambda s: (s.count, s.count if _is_root(s) else 0),
        bind=lambda s, transport, b: transport.reduce(b.sent, b.received, s.redop, s.root),
        expected=lambda s, positions: reduced(s, positions),
        in_place=True,
        reduces=True,
        holds=_is_root,
    ),
    "gather": Operation(
        lengths=lambda s: (_part(s), s.count if _is_root(s) else 0),
        bind=lambda s, transport, b: transport.gather(b.sent, b.received, s.root),
        expected=lambda s, positions: _from_each(s, positions, 0),
        holds=_is_root,
    ),
    "scatter": Operation(
        lengths=lambda s: (s.count if _is_root(s) else 0, _part(s)),
        bind=lambda s, transport, b: transport.scatter(b.sent, b.received, s.root),
        expected=lambda s, positions: pattern(s, s.root, positions + s.rank * _part(s)),
    ),
    "pt2pt": Operation(
        lengths=lambda s: (s.count, 0) if s.rank == s.pair[0] else (0, s.count),
        bind=_send_or_receive,
        expected=lambda s, positions: pattern(s, s.pair[0], positions),
        takes_part=_in_pair,
        holds=lambda s: s.rank == s.pair[1],
    ),
    "pt2pt_bidirectional": Operation(
        lengths=_same,
        bind=lambda s, transport, b: transport.exchange(b.sent, s.partner, b.received, s.partner),
        expected=lambda s, positions: pattern(s, s.partner, positions),
        takes_part=_in_pair,
    ),
    "sendrecv": Operation(
        lengths=_same,
        bind=lambda s, transport, b: transport.exchange(b.sent, _neighbours(s)[0], b.received, _neighbours(s)[1]),
        expected=lambda s, positions: pattern(s, _neighbours(s)[1], positions),
    ),
    "barrier": Operation(
        lengths=lambda s: (0, 0),
        bind=lambda s, transport, b: transport.barrier(),
        expected=lambda s, positions: positions,
        holds=lambda s: False,
    ),
}
