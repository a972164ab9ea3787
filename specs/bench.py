"""Measure the basic technical parameters of a device: arithmetic, memory, links, disk, energy.

    python specs/bench.py --sustain 10
    torchrun --nproc-per-node 8 specs/bench.py --out records
    python specs/bench.py --parts disk --disk /mnt/checkpoints

Arithmetic and memory are measured in all ranks at once. Every product is proven right, in its own element type, before
it is timed; the fastest shape of a search is then timed in turns. What the device or torch has not is null, with the
reason. Power, temperature and clocks are sampled beside it, in sensors-*.jsonl under --out.
"""

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import torch

from assay.clock import now
from assay.errors import BadInput
from assay.limits.ceilings import (
    SEARCH,
    TURNS,
    Ceiling,
    Fastest,
    fastest_products,
    from_first,
    measure,
    prepared,
    record,
    tell,
    tell_unknown,
)
from assay.limits.disk import PIECE, WAYS, NoDisk, time_pass
from assay.limits.memory import buffer_bytes, copy, host_copy, link, triad
from assay.limits.products import Unsupported, refusals
from assay.limits.timing import Work
from assay.options import SpecsOptions, parse_command_line
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.units import format_si

OF_TURNS = f" of {TURNS} turns of rank 0"
SUSTAINED = 0.25  # s per sample; a curve over minutes needs no more


def main() -> None:
    """Measure the parts that are asked for, in order."""
    options = parse_command_line(SpecsOptions, __doc__)
    with session(options, "specs/bench") as here:
        arithmetic = {"products", "energy"} & set(options.parts)
        found = fastest_products(here, options.dtypes, SEARCH * options.seconds) if arithmetic else []
        # The sustained products are minutes each: each of them is a step, whenever its turn comes.
        steps = len(options.parts) + (len(found) - 1 if "energy" in options.parts and options.sustain else 0)
        parts: dict[str, Callable[[], None]] = {
            "products": lambda: products(options, here, found),
            "memory": lambda: memory(options, here),
            "host": lambda: host(options, here),
            "links": lambda: links(options, here),
            "disk": lambda: disk(options, here),
            "energy": lambda: energy(options, here, found, steps),
        }
        for number, part in enumerate(options.parts, 1):
            here.world.barrier()
            parts[part]()
            if here.world.is_first and part != "energy":
                print(progress_line(number, steps, part), flush=True)


def products(options: SpecsOptions, here: Session, found: Sequence[Fastest]) -> None:
    """Matrix products of every element type, each in its fastest shape; all of them take turns."""
    rates: dict[str, list[float | None]] = {}
    for turn in range(TURNS):
        for best in found:
            ceiling = best.ceiling(here, "gemm_time")
            rate = measure(here, ceiling, options.seconds / TURNS, alone=False, turn=turn)
            rates.setdefault(best.kind.name, []).append(rate)
    for best in found:
        tell(here, f"gemm {best.kind.name} {best.shape}", best.kind.unit, rates[best.kind.name], OF_TURNS)


def memory(options: SpecsOptions, here: Session) -> None:
    """Capacity; copy and triad within the device's memory."""
    total = here.device.memory().total
    reason = f"torch's module of {here.device.type} tells no memory" if total is None else None
    here.recorder.block("memory_total", "B", [total], reason=reason)
    count = copied_bytes(options, here)
    for name, made in (("copy_time", copy), ("triad_time", triad)):
        in_turns(here, name, partial(made, here.device, count), {"bytes": count}, options.seconds)


def host(options: SpecsOptions, here: Session) -> None:
    """Copies between host and device, pinned and pageable, in both directions."""
    count = copied_bytes(options, here)
    for direction in ("h2d", "d2h"):
        for kind in ("pinned", "pageable"):
            tags: dict[str, TagValue] = {"direction": direction, "memory": kind}
            if here.device.type == "cpu":
                here.recorder.block("host_copy_time", "s", [None], tags, reason="the device is the host itself")
                tell_unknown(here, f"host copy {direction} {kind}", "the device is the host itself")
                continue
            make = partial(host_copy, here.device, count, to_device=direction == "h2d", pinned=kind == "pinned")
            in_turns(here, "host_copy_time", make, tags, options.seconds)


def links(options: SpecsOptions, here: Session) -> None:
    """Copies between every two devices of a host, one way and both ways at once, one pair at a time."""
    count = copied_bytes(options, here)
    present = 1 if here.device.type == "cpu" else torch.accelerator.device_count()
    if present < 2:
        reason = "the device is the host itself" if here.device.type == "cpu" else "this host has one device"
        for ways in (1, 2):
            here.recorder.block("link_time", "s", [None], {"ways": ways}, reason=reason)
        tell_unknown(here, "link", reason)
        return
    # One rank a host drives the copies of all its devices: others would only load the links that are measured. They
    # wait pair by pair, because one wait for all of them could outlast what a collective may take.
    for pair in permutations(range(present), 2):
        for ways in (1, 2) if pair[0] < pair[1] else (1,):
            here.world.barrier()
            if here.world.local_rank == 0:
                of_link(options, here, pair, ways, count)


def of_link(options: SpecsOptions, here: Session, pair: tuple[int, int], ways: int, count: int) -> None:
    """One pair of devices, driven by this rank."""
    tags: dict[str, TagValue] = {"from": pair[0], "to": pair[1], "ways": ways}
    try:
        with refusals(here.device):
            ceiling = Ceiling("link_time", "B/s", link(here.device, pair, count, both_ways=ways == 2), tags)
            rates = [record(here, ceiling, options.seconds / TURNS, "alone", turn=turn) for turn in range(TURNS)]
            tell(here, ceiling.name, "B/s", rates, OF_TURNS)
    except Unsupported as error:
        here.recorder.block("link_time", "s", [None], tags, reason=str(error))


def disk(options: SpecsOptions, here: Session) -> None:
    """Passes over a file: written and synced, written directly, read directly. One rank a host."""
    if options.disk is not None and not options.disk.is_dir():
        raise BadInput(f"--disk {options.disk}: is no folder on {platform.node()}; give one that is there")
    if here.world.local_rank != 0:
        return
    folder = (options.disk or options.out or Path()).resolve()
    count = options.disk_bytes // PIECE * PIECE
    free = shutil.disk_usage(folder).free if folder.is_dir() else count
    if 2 * count > free:
        raise BadInput(
            f"--disk-bytes: {format_si(count, 'B')} are too many for {folder}, which has {format_si(free, 'B')} free"
        )
    for way in WAYS:
        tags: dict[str, TagValue] = {"way": way, "bytes": count, "folder": str(folder)}
        try:
            passes = [time_pass(folder, way, count) for _ in range(options.disk_passes)]
        except NoDisk as error:
            here.recorder.block("disk_time", "s", [None], tags, reason=str(error))
            tell_unknown(here, f"disk {way}", str(error))
            continue
        here.recorder.block("disk_time", "s", passes, tags)
        tell(here, f"disk {way}", "B/s", [count / seconds for seconds in passes], f" of {len(passes)} passes")


def energy(options: SpecsOptions, here: Session, found: Sequence[Fastest], steps: int) -> None:
    """Rest, then minutes under the products of every element type, in all ranks at once.

    Here are the times between which the power, the heat and the clocks count that the sensors recorded.
    """
    begun = now()
    time.sleep(options.idle)
    here.recorder.block("rest_time", "s", [now() - begun], {"begun": begun})
    before = options.parts.index("energy")
    for done, best in enumerate(found if options.sustain else (), 1):
        ceiling = best.ceiling(here, "sustained_time")
        rate = measure(here, ceiling, options.sustain, alone=False, shortest=SUSTAINED)
        tell(here, ceiling.name, best.kind.unit, [rate], f" in the best tenth of {options.sustain:g} s of rank 0")
        if here.world.is_first:
            print(progress_line(before + done, steps, ceiling.name), flush=True)


def copied_bytes(options: SpecsOptions, here: Session) -> int:
    """Bytes per buffer, the same in all ranks."""
    return options.copy_bytes or from_first(here, buffer_bytes(here.device, here.world.local_size))


def in_turns(here: Session, metric: str, make: Callable[[], Work], tags: dict[str, TagValue], seconds: float) -> None:
    """All turns of one ceiling, in all ranks at once; the reason where it cannot be prepared."""
    work = prepared(here, make)
    if isinstance(work, str):
        here.recorder.block(metric, "s", [None], tags, reason=work)
        tell_unknown(here, metric.removesuffix("_time"), work)
        return
    ceiling = Ceiling(metric, "B/s", work, tags)
    rates = [measure(here, ceiling, seconds / TURNS, alone=False, turn=turn) for turn in range(TURNS)]
    tell(here, ceiling.name, "B/s", rates, OF_TURNS)


if __name__ == "__main__":
    main()
