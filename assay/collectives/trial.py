"""One collective at one size over one transport on one rank: buffers, the call that is timed, and its samples."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from assay.collectives.operations import OPERATIONS
from assay.collectives.pattern import EVALUATIONS, fill
from assay.collectives.setting import Setting
from assay.errors import RunFailed
from assay.options.comms import ITEM_BYTES, CommsOptions
from assay.ranks import Session
from assay.record import TagValue
from assay.traffic import digest, read_matrix
from assay.transports import Transport
from assay.world import first_of_second_host

LATE_SECONDS = 0.2  # what was wrong when a call returned and is right so much later had not been awaited


@dataclass(frozen=True)
class Variant:
    """What a sweep over sizes is of. placement: auto, in or out."""

    op: str
    dtype: str
    redop: str
    placement: str


class Trial:
    """One op at one size over one transport on this rank. Times in s; entries and exits on this rank's own clock."""

    def __init__(self, options: CommsOptions, here: Session, transport: Transport, variant: Variant, size: int) -> None:
        self._made_of = (options, here, transport, variant, size)
        self.op, self.dtype, self.redop = variant.op, variant.dtype, variant.redop
        self.operation = OPERATIONS[self.op]
        in_place = self.operation.in_place if variant.placement == "auto" else variant.placement == "in"
        groups = options.groups(here.world.size)
        members = next(group for group in groups if here.world.rank in group)
        traffic = read_matrix(options.matrix) if options.matrix else None
        setting = Setting(
            rank=members.index(here.world.rank),
            world=len(members),
            pair=(0, first_of_second_host([here.world.hosts[rank] for rank in members])),
            dtype=getattr(torch, self.dtype),
            device=here.device.torch_device,
            seed=options.seed,
            count=size // ITEM_BYTES[self.dtype] // options.coalesce,
            redop=self.redop if self.operation.reduces else "sum",
            matrix=traffic,
        )
        self.settings = [replace(setting, seed=options.seed + piece) for piece in range(options.coalesce)]
        self.size = size
        if self.op == "all_to_all_v":  # whole elements a part make the largest buffer a little smaller than asked
            self.size = setting.largest_buffer * options.coalesce * ITEM_BYTES[self.dtype]
        self.transport, self.here = transport, here
        self.takes_part = self.operation.takes_part(setting)
        self.refused = transport.refusal(self.op, setting.dtype, setting.redop, in_place)
        self.bytes_needed = options.coalesce * self.operation.elements(setting, in_place) * ITEM_BYTES[self.dtype]
        self.in_place = in_place
        self.calls = options.calls
        self.batches: list[float] = []
        self.entries: list[float] = []
        self.exits: list[float] = []
        self.checks: list[int] = []
        self.late = self.looked_at = self.elements = 0
        self.tags: dict[str, TagValue] = {
            "op": self.op,
            "bytes": self.size,
            "dtype": self.dtype,
            "backend": transport.name,
            "world": len(members),
        }
        # What is usual needs no tag, so that records of other versions and tools match.
        self.tags |= {"redop": self.redop} if self.operation.reduces and self.redop != "sum" else {}
        self.tags |= {"placement": "in" if in_place else "out"} if in_place != self.operation.in_place else {}
        self.tags |= {"groups": len(groups)} if len(groups) > 1 else {}
        self.tags |= {"asynchronous": True} if options.asynchronous else {}
        if options.coalesce > 1:
            self.tags |= {"coalesced": options.coalesce, "means": transport.means(self.op)}
        self.tags |= {"graph": True} if options.graph else {}
        self.tags |= {"matrix": digest(traffic)} if traffic is not None and self.op == "all_to_all_v" else {}

    def anew(self) -> "Trial":
        """The same trial without samples."""
        return Trial(*self._made_of)

    def prepare(self, options: CommsOptions) -> None:
        """Make the buffers and bind the call to them. Raises RunFailed on what the transport cannot do."""
        if self.refused:
            raise RunFailed(self.refused)
        self.buffers = [self.operation.allocate(setting, self.in_place) for setting in self.settings]
        # Groups that are to run at the same time must begin together, which their own barriers do not see to.
        together = "groups" in self.tags
        self.barrier: Callable[[], object] = self.here.world.barrier if together else self.transport.barrier().call
        self.call: Callable[[], object] = lambda: None
        if self.takes_part:
            pairs = zip(self.settings, self.buffers, strict=True)
            bound = [self.operation.bind(setting, self.transport, buffers) for setting, buffers in pairs]
            one = self.transport.together(self.op, bound) if len(bound) > 1 else bound[0]
            self.call = awaited(self.transport, one.start) if options.asynchronous else one.call
            if options.graph:
                self.call = captured(self.call)
        self.complete = self.call  # on a CPU it is done when it returns
        if self.here.device.type != "cpu":
            call, synchronize = self.call, self.here.device.synchronize
            self.complete = lambda: (call(), synchronize())

    def release(self) -> None:
        """Give the buffers back, so that the next size has the memory."""
        self.buffers = []
        self.call = self.complete = lambda: None

    def refill(self) -> None:
        """Fresh patterned data."""
        for setting, buffers in zip(self.settings, self.buffers, strict=True):
            fill(setting, buffers)
        self.here.device.synchronize()

    def check(self, evaluations: int = EVALUATIONS) -> int:
        """Compare what one call on fresh data left with what this rank must hold; all wrong elements so far.

        evaluations: pattern values that may be computed; larger buffers are looked at in so many random places.
        """
        for setting, buffers in zip(self.settings, self.buffers, strict=True):
            found = self.operation.check(setting, buffers, evaluations)
            self.checks.append(found.wrong)
            if found.wrong and not self.late:
                time.sleep(LATE_SECONDS)
                self.late += found.wrong - self.operation.check(setting, buffers, evaluations).wrong
            self.looked_at, self.elements = self.looked_at + found.looked_at, self.elements + found.total
        return sum(self.checks)


def awaited(transport: Transport, start: Callable[[], object]) -> Callable[[], object]:
    """A call that begins the collective and awaits its handle: a handle that is dropped times nothing but the launch."""
    return lambda: transport.wait(start())


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """Replays `call` from a CUDA graph."""
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call] # untyped in torch
    with torch.cuda.stream(side):
        call()  # communicators are made at the first call, which cannot be captured
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
