"""Which trials the options ask for: a sweep over sizes for each op, element type, reduction and placement."""

from collections.abc import Iterator, Sequence
from itertools import product

from assay.collectives.operations import OPERATIONS
from assay.collectives.trial import Trial, Variant
from assay.errors import BadInput
from assay.options import CommsOptions
from assay.options.comms import ITEM_BYTES
from assay.ranks import Session
from assay.transports import Transport
from assay.units import format_size


def _variants(options: CommsOptions) -> Iterator[Variant]:
    """Every sweep that was asked for."""
    placements = ("in", "out") if options.placement == "both" else (options.placement,)
    for op, dtype, redop, placement in product(options.ops, options.dtype, options.redop, placements):
        if redop != options.redop[0] and not OPERATIONS[op].reduces:
            continue
        if op == "barrier" and (dtype, placement) != (options.dtype[0], placements[0]):
            continue
        yield Variant(op, dtype, redop, placement)


def sweeps(options: CommsOptions, here: Session, transports: Sequence[Transport]) -> list[list[list[Trial]]]:
    """A list of sizes for every sweep; for each size, one trial over each transport.

    Raises BadInput if whole elements leave nothing of any size of a sweep.
    """
    members = len(options.groups(here.world.size)[0])
    found = []
    for variant in _variants(options):
        sizes = list(options.sizes(variant.op, members, ITEM_BYTES[variant.dtype]))
        found.append(_trials_of(options, here, transports, variant, sizes))
    return found


def _trials_of(
    options: CommsOptions, here: Session, transports: Sequence[Transport], variant: Variant, sizes: Sequence[int]
) -> list[list[Trial]]:
    """Every size's trials over each transport, without sizes that whole elements make equal or empty."""
    found: dict[int, list[Trial]] = {}
    for size in sizes:
        trials = [Trial(options, here, transport, variant, size) for transport in transports]
        if trials[0].size or not size:
            found.setdefault(trials[0].size, trials)
    if not found:
        raise BadInput(f"--max: {variant.op} has no part of a whole element at {format_size(max(sizes))}; give more")
    return list(found.values())
