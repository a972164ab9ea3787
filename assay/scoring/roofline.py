"""Training steps under the rooflines of the machine: their work out of the records, the roof out of the ceilings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.record import Block, RankFile
from assay.roofline import Kind, Roofline, RooflinePoint, StepWork
from assay.scoring.ceilings import find
from assay.scoring.result import CaseResult, Figure
from assay.scoring.samples import device_of, world_of

_KINDS: tuple[Kind, ...] = ("counted", "analytic")
_LINES = ("flops_per_sample", "bytes_fixed", "bytes_per_sample")


@dataclass(frozen=True, order=True)
class _Roof:
    device: str
    ranks: int
    dtype: str


def rooflines(cases: Iterable[tuple[CaseResult, list[RankFile]]], limits: Sequence[Figure]) -> tuple[Roofline, ...]:
    """One roofline for each device, number of ranks and element type that trained, with the points of its cases.

    cases: with their figures derived already. The roof is the measured GEMM rate in the element type and the measured copy
    rate (bytes read plus written), per device with as many ranks loaded. Cases that recorded no work are left out.
    """
    found: dict[_Roof, list[RooflinePoint]] = {}
    missing: dict[_Roof, list[tuple[str, Kind, str]]] = {}
    for case, files in cases:
        for kind in _KINDS:
            block = next((b for file in files for b in file.blocks if b.metric == f"step_flops_{kind}"), None)
            if block is None:
                continue
            roof = _Roof(device_of(files) or "", world_of(files), str(block.tags.get("dtype")))
            points = found.setdefault(roof, [])
            point = _point(case, kind, block)
            if isinstance(point, RooflinePoint):
                points.append(point)
            else:
                missing.setdefault(roof, []).append((case.name, kind, point))
    return tuple(_roofline(roof, found[roof], missing.get(roof, []), limits) for roof in sorted(found))


def _point(case: CaseResult, kind: Kind, block: Block) -> RooflinePoint | str:
    """The case's point, or why there is none."""
    tags: Mapping[str, Any] = block.tags
    if block.reason:
        return block.reason
    if not all(_is_count(tags.get(key)) for key in (*_LINES, "micro_batch", "passes")):
        return "the recorded work does not make sense"
    work = StepWork(*(tags[key] for key in _LINES))
    samples = tags["micro_batch"] * tags["passes"]
    if not (work.flops(samples) > 0 and work.bytes(samples) > 0):
        return "the recorded work does not make sense"
    step = next((figure for figure in case.figures if figure.metric == "step_time_p50"), None)
    rate = work.flops(samples) / step.value if step and step.value else None
    reason = None if rate else (step and step.reason) or "no step time is known"
    return RooflinePoint(case.name, kind, work, tags["micro_batch"], tags["passes"], rate, reason)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _roofline(
    roof: _Roof,
    points: Iterable[RooflinePoint],
    missing: Iterable[tuple[str, Kind, str]],
    limits: Sequence[Figure],
) -> Roofline:
    peak = find(limits, "gemm_rate", roof.ranks, roof.device, roof.dtype)
    bandwidth = find(limits, "copy_rate", roof.ranks, roof.device)
    return Roofline(
        device=roof.device,
        ranks=roof.ranks,
        dtype=roof.dtype,
        peak=peak[0] if peak else None,
        peak_name=peak[1] if peak else f"no GEMM rate in {roof.dtype} was measured with as many ranks loaded",
        bandwidth=bandwidth[0] if bandwidth else None,
        bandwidth_name=bandwidth[1] if bandwidth else "no copy rate was measured with as many ranks loaded",
        points=tuple(points),
        missing=tuple(missing),
    )
