"""Measure the basic technical parameters of a device: arithmetic, memory, links, disk, energy.

    python specs/bench.py --sustain 10
    torchrun --nproc-per-node 8 specs/bench.py --out records
    python specs/bench.py --parts disk --disk /mnt/checkpoints

Arithmetic and memory are measured in all ranks at once. Every product is proven right, in its own element type, before
it is timed; the fastest shape of a search is then timed in turns. What the device or torch has not is null, with the
reason. Power, temperature and clocks are sampled beside it, in sensors-*.jsonl under --out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch

from assay.clock import now
from assay.limits.ceilings import Ceiling, from_first, measure, record, tell
from assay.limits.disk import PIECE, WAYS, NoDisk, time_pass
from assay.limits.memory import buffer_bytes, copy, host_copy, link, triad
from assay.limits.products import KINDS, Kind, Shape, Unsupported, fastest, product, prove, search, shapes_for
from assay.options import SpecsOptions, parse_command_line
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.units import format_si

TURNS = 6  # the fewest that can carry an interval
SEARCH = 0.03  # of --seconds, for each shape that is tried
SUSTAINED = 0.25  # s per sample; a curve over minutes needs no more


def main() -> None:
    """Measure the parts that are asked for, in order."""
    options = parse_command_line(SpecsOptions, __doc__)
    with session(options, "specs/bench") as here:
        arithmetic = {"products", "energy"} & set(options.parts)
        found = fastest_products(options, here) if arithmetic else []
        parts: dict[str, Callable[[], None]] = {
            "products": lambda: products(options, here, found),
            "memory": lambda: memory(options, here),
            "host": lambda: host(options, here),
            "links": lambda: links(options, here),
            "disk": lambda: disk(options, here),
            "energy": lambda: energy(options, here, found),
        }
        for done, part in enumerate(options.parts, 1):
            here.world.barrier()
            parts[part]()
            if here.world.is_first:
                print(progress_line(done, len(options.parts), part), flush=True)


def products(options: SpecsOptions, here: Session, found: list["Fastest"]) -> None:
    """Matrix products of every element type, each in its fastest shape."""
    for turn in range(TURNS):
        for best in found:
            rate = measure(here, best.ceiling(here, "gemm_time"), options.seconds / TURNS, alone=False, turn=turn)
            if turn == TURNS - 1:
                tell(here, best.ceiling(here, "gemm_time"), rate)


def memory(options: SpecsOptions, here: Session) -> None:
    """Capacity; copy and triad within the device's memory."""
    free, total = here.device.memory()
    why = f"torch's module of {here.device.type} tells no memory"
    here.recorder.block("memory_total", "B", [total], reason=why if total is None else None)
    here.recorder.block("memory_free", "B", [free], reason=why if free is None else None)
    count = copied_bytes(options, here)
    for name, made in (("copy_time", copy), ("triad_time", triad)):
        in_turns(here, Ceiling(name, "B/s", made(here.device, count), {"bytes": count}), options.seconds)


def host(options: SpecsOptions, here: Session) -> None:
    """Copies between host and device, pinned and pageable, in both directions."""
    for direction in ("h2d", "d2h"):
        for kind in ("pinned", "pageable"):
            tags: dict[str, TagValue] = {"direction": direction, "memory": kind}
            if here.device.type == "cpu":
                here.recorder.block("host_copy_time", "s", [None], tags, reason="the device is the host itself")
                continue
            count = copied_bytes(options, here)
            work = host_copy(here.device, count, to_device=direction == "h2d", pinned=kind == "pinned")
            in_turns(here, Ceiling("host_copy_time", "B/s", work, tags), options.seconds)


def links(options: SpecsOptions, here: Session) -> None:
    """Copies between every two devices of a host, one way and both ways at once, one pair at a time."""
    present = 1 if here.device.type == "cpu" else torch.accelerator.device_count()
    if present < 2:
        reason = "the device is the host itself" if here.device.type == "cpu" else "this host has one device"
        for ways in (1, 2):
            here.recorder.block("link_time", "s", [None], {"ways": ways}, reason=reason)
        return
    if here.world.local_rank != 0:  # more than one rank a host would only load the links that are measured
        return
    count = copied_bytes(options, here)
    for pair in permutations(range(present), 2):
        for ways in (1, 2) if pair[0] < pair[1] else (1,):
            work = link(here.device, pair, count, both_ways=ways == 2)
            tags: dict[str, TagValue] = {"from": pair[0], "to": pair[1], "ways": ways}
            ceiling = Ceiling("link_time", "B/s", work, tags)
            for turn in range(TURNS):
                rate = record(here, ceiling, options.seconds / TURNS, "alone", turn=turn)
            tell(here, ceiling, rate)


def disk(options: SpecsOptions, here: Session) -> None:
    """Passes over a file: written and synced, written directly, read directly. One rank a host."""
    if here.world.local_rank != 0:
        return
    folder = (options.disk or options.out or Path()).resolve()
    count = options.disk_bytes // PIECE * PIECE
    for way in WAYS:
        tags: dict[str, TagValue] = {"way": way, "bytes": count, "folder": str(folder)}
        try:
            passes = [time_pass(folder, way, count) for _ in range(options.disk_passes)]
        except NoDisk as error:
            here.recorder.block("disk_time", "s", [None], tags, reason=str(error))
            continue
        here.recorder.block("disk_time", "s", passes, tags)
        if here.world.is_first:
            print(f"{f'disk {way}':<36} {format_si(count / min(passes), 'B/s')}, best of {len(passes)}", flush=True)


def energy(options: SpecsOptions, here: Session, found: list["Fastest"]) -> None:
    """Rest, then minutes of the fastest floating-point and of the fastest integer product, in all ranks at once.

    Here are the times between which the power counts that the sensors recorded.
    """
    begun = now()
    time.sleep(options.idle)
    here.recorder.block("rest_time", "s", [now() - begun], {"begun": begun})
    for unit in ("FLOP/s", "OP/s") if options.sustain else ():
        fastest_first = sorted((one for one in found if one.kind.unit == unit), key=lambda one: -one.rate)
        for best in fastest_first[:1]:
            ceiling = best.ceiling(here, "sustained_time")
            rate = measure(here, ceiling, options.sustain, alone=False, shortest=SUSTAINED)
            tell(here, ceiling, rate, f", best of {options.sustain:g} s")


@dataclass(frozen=True)
class Fastest:
    """An element type in the shape that rank 0 found fastest. rate: operations per second in the search."""

    kind: Kind
    shape: Shape
    rate: float

    def ceiling(self, here: Session, metric: str) -> Ceiling:
        """Made when it is needed and not kept: the operands of all types together may not fit."""
        tags: dict[str, TagValue] = {"dtype": self.kind.name, "shape": str(self.shape)}
        return Ceiling(metric, self.kind.unit, product(here.device, self.kind, self.shape), tags)


def fastest_products(options: SpecsOptions, here: Session) -> list[Fastest]:
    """Every element type that this device has, and a record with the reason for every other."""
    found: list[Fastest] = []
    for name in options.dtypes:
        result: tuple[Shape, float] | str = "only rank 0 searches"
        if here.world.is_first:
            result = proven_and_searched(here, KINDS[name], SEARCH * options.seconds)
        result = from_first(here, result)
        if isinstance(result, str):
            if here.world.is_first:
                here.recorder.block("gemm_time", "s", [None], {"dtype": name}, reason=result)
        else:
            found.append(Fastest(KINDS[name], *result))
    return found


def proven_and_searched(here: Session, kind: Kind, seconds: float) -> tuple[Shape, float] | str:
    """The fastest shape and its rate, or the reason why there is none. Every shape tried is recorded."""
    try:
        prove(kind, here.device)
        tried = search(here.device, kind, shapes_for(here.device), seconds)
    except Unsupported as error:
        return str(error)
    for shape, timings in tried:
        tags: dict[str, TagValue] = {"dtype": kind.name, "shape": str(shape), "calls": timings.calls}
        here.recorder.block("search_time", "s", timings.times, {**tags, "work": shape.operations * timings.calls})
    return fastest(tried)


def copied_bytes(options: SpecsOptions, here: Session) -> int:
    """Bytes per buffer, the same in all ranks."""
    return options.copy_bytes or from_first(here, buffer_bytes(here.device, here.world.local_size))


def in_turns(here: Session, ceiling: Ceiling, seconds: float) -> None:
    """All turns of one ceiling, in all ranks at once."""
    for turn in range(TURNS):
        rate = measure(here, ceiling, seconds / TURNS, alone=False, turn=turn)
    tell(here, ceiling, rate)


if __name__ == "__main__":
    main()
