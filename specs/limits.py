"""Measure this machine's ceilings: matrix multiplication and memory copy.

    python specs/limits.py
    torchrun --nproc-per-node 2 specs/limits.py --seconds 3 --out records

Every ceiling is measured alone (rank 0 works, the others wait) and with all ranks loaded together, because ranks of
one host share its memory and power.
"""

from collections.abc import Callable

import torch

from assay.limits import copy_bytes_moved, copy_times, gemm_flops, gemm_times
from assay.options import LimitsOptions, parse_command_line
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.units import format_si

# (metric, unit of the rate, work per sample, tags, measure)
Ceiling = tuple[str, str, int, dict[str, TagValue], Callable[[], list[float]]]


def ceilings(options: LimitsOptions, here: Session) -> list[Ceiling]:
    """What is measured: the metric recorded, the work of one sample, and the function that takes the samples."""
    dtype: torch.dtype = getattr(torch, options.dtype)
    size, count = options.gemm_size, options.copy_bytes
    return [
        (
            "gemm_time",
            "FLOP/s",
            gemm_flops(size),
            {"size": size, "dtype": options.dtype},
            lambda: gemm_times(here.device, size, dtype, options.seconds),
        ),
        (
            "copy_time",
            "B/s",
            copy_bytes_moved(count),
            {"bytes": count},
            lambda: copy_times(here.device, count, options.seconds),
        ),
    ]


def limits(options: LimitsOptions, here: Session) -> None:
    """Measure and record every ceiling, alone and together; rank 0 prints its own best rates."""
    todo = [(loaded, item) for loaded in ("alone", "together") for item in ceilings(options, here)]
    for done, (loaded, (metric, unit, work, tags, take)) in enumerate(todo):
        here.world.barrier()
        if loaded == "together" or here.world.is_first:
            times = take()
            here.recorder.block(metric, "s", times, {**tags, "work": work, "loaded": loaded, "ranks": here.world.size})
            if here.world.is_first:
                best = format_si(work / min(times), unit)
                print(
                    f"{metric.removesuffix('_time'):<5} {loaded:<9} {best} at best of {len(times)} samples", flush=True
                )
                print(progress_line(done + 1, len(todo), f"{metric} {loaded}"), flush=True)
        here.world.barrier()


if __name__ == "__main__":
    arguments = parse_command_line(LimitsOptions, __doc__)
    with session(arguments, "specs/limits") as joined:
        limits(arguments, joined)
