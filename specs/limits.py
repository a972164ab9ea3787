"""Measure this machine's ceilings: matrix multiplication and memory copy.

    python specs/limits.py
    torchrun --nproc-per-node 2 specs/limits.py --seconds 3 --out records

Every ceiling is measured alone (rank 0 works, the others wait) and with all ranks loaded together, because ranks of
one host share its memory and power.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from assay.limits import (
    ACCELERATOR_COPY_BYTES,
    ACCELERATOR_GEMM_SIZE,
    CPU_COPY_BYTES,
    CPU_GEMM_SIZE,
    Timings,
    copy_bytes_moved,
    gemm_flops,
    time_copy,
    time_gemm,
)
from assay.options import LimitsOptions, parse_command_line
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.units import format_si


@dataclass(frozen=True)
class Ceiling:
    """One ceiling: the metric recorded (s per sample), the work of a sample, the rate's unit, and what takes samples."""

    metric: str
    work: int
    unit: str
    tags: dict[str, TagValue]
    take: Callable[[], Timings]


def ceilings(options: LimitsOptions, here: Session) -> list[Ceiling]:
    """What is measured, in order."""
    on_cpu = here.device.type == "cpu"
    size = options.gemm_size or (CPU_GEMM_SIZE if on_cpu else ACCELERATOR_GEMM_SIZE)
    count = options.copy_bytes or (CPU_COPY_BYTES if on_cpu else ACCELERATOR_COPY_BYTES)
    products = [
        Ceiling(
            metric="gemm_time",
            work=gemm_flops(size),
            unit="FLOP/s",
            tags={"size": size, "dtype": name},
            take=partial(time_gemm, here.device, size, getattr(torch, name), options.seconds),
        )
        for name in options.dtypes
    ]
    copy = Ceiling(
        metric="copy_time",
        work=copy_bytes_moved(count),
        unit="B/s",
        tags={"bytes": count},
        take=partial(time_copy, here.device, count, options.seconds),
    )
    return [*products, copy]


def limits(options: LimitsOptions, here: Session) -> None:
    """Measure and record every ceiling, alone and together; rank 0 prints its own best rates."""
    world = here.world
    loads = ("alone", "together") if world.size > 1 else ("alone",)
    todo = [(loaded, ceiling) for loaded in loads for ceiling in ceilings(options, here)]
    for done, (loaded, ceiling) in enumerate(todo, 1):
        world.barrier()
        if loaded == "together" or world.is_first:
            timings = ceiling.take()
            times = timings.times
            tags = {**ceiling.tags, "work": ceiling.work, "loaded": loaded, "ranks": world.size, "begun": timings.begun}
            here.recorder.block(ceiling.metric, "s", times, tags)
            if world.is_first:
                best = format_si(ceiling.work / min(times), ceiling.unit)
                what = f"{ceiling.metric.removesuffix('_time')} {ceiling.tags.get('dtype', '')}"
                print(f"{what:<14} {loaded:<8} {best}, best of {len(times)} samples", flush=True)
                print(progress_line(done, len(todo), f"{what} {loaded}"), flush=True)
        world.barrier()


if __name__ == "__main__":
    arguments = parse_command_line(LimitsOptions, __doc__)
    with session(arguments, "specs/limits") as joined:
        limits(arguments, joined)
