"""Measure the ceilings that other figures are held against: matrix multiplication and memory copy.

    python specs/limits.py
    torchrun --nproc-per-node 2 specs/limits.py --seconds 3 --out records

Every ceiling is measured alone (rank 0 works, the others wait) and with all ranks loaded together, because ranks of
one host share its memory and power. All of them take turns, so that each is seen at several times. Everything else
that a device can do is measured by specs/bench.py.
"""

from functools import partial

from assay.limits.ceilings import (
    SEARCH,
    TURNS,
    Ceiling,
    fastest_products,
    from_first,
    measure,
    prepared,
    tell,
    tell_unknown,
)
from assay.limits.memory import buffer_bytes, copy
from assay.limits.products import Shape
from assay.options import LimitsOptions, parse_command_line
from assay.progress import progress_line
from assay.ranks import Session, session


def limits(options: LimitsOptions, here: Session) -> None:
    """Measure and record every ceiling, alone and together, in turns; rank 0 prints its own."""
    todo = ceilings(options, here)
    loads = ("alone", "together") if here.world.size > 1 else ("alone",)
    total = TURNS * len(loads) * len(todo)
    done = 0
    rates: dict[str, tuple[str, list[float | None]]] = {}
    for turn in range(TURNS):
        for loaded in loads:
            for ceiling in todo:
                rate = measure(here, ceiling, options.seconds / TURNS, alone=loaded == "alone", turn=turn)
                rates.setdefault(f"{ceiling.name} {loaded}", (ceiling.unit, []))[1].append(rate)
                done += 1
                if here.world.is_first:
                    print(progress_line(done, total, f"{ceiling.name} {loaded}"), flush=True)
    for name, (unit, turns) in rates.items():
        tell(here, name, unit, turns, f" of {TURNS} turns of rank 0")


def ceilings(options: LimitsOptions, here: Session) -> list[Ceiling]:
    """What is measured, in order."""
    side = options.gemm_size
    shapes = [Shape(side, side, side)] if side else []
    found = fastest_products(here, options.dtypes, SEARCH * options.seconds, shapes)
    count = options.copy_bytes or from_first(here, buffer_bytes(here.device, here.world.local_size))
    todo = [best.ceiling(here, "gemm_time") for best in found]
    work = prepared(here, partial(copy, here.device, count))
    if isinstance(work, str):
        here.recorder.block("copy_time", "s", [None], reason=work)
        tell_unknown(here, "copy", work)
        return todo
    return [*todo, Ceiling("copy_time", "B/s", work, {"bytes": count})]


if __name__ == "__main__":
    arguments = parse_command_line(LimitsOptions, __doc__)
    with session(arguments, "specs/limits") as joined:
        limits(arguments, joined)
