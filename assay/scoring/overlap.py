"""Figures of comms/overlap.py: how much of a collective hides behind products, and how much of it stays exposed.

A round times the products alone, the collective alone and both together, each after a barrier. The longest time of any
rank counts, round by round, and what is derived of the three is derived within the round, so that a slow stretch of the
machine, which makes all three longer, does not pass for a lack of overlap.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from assay.bandwidth import COLLECTIVES
from assay.estimates import Estimate, median_interval
from assay.overlap import PARTS, exposed_times, overlap_shares
from assay.record import RankFile
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import Array, by_rank, stacked

SCRIPT = "comms/overlap"
_KEYS = ("op", "bytes", "dtype", "backend", "world", "gemm", "gemm_dtype", "products")


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures of every size, in the order measured: medians over rounds with their intervals. No curves.

    compute_time, communication_time, both_time: s, the longest of any rank, from before the collective was begun until
    it was awaited and the device synchronised. exposed_communication (s) and overlap_share: see assay/overlap.py.
    check_errors: wrong elements, of the collective's data and of the products, over all ranks. late_elements: those of them
    that were right a moment later, so that the handle said too early that all was done; only where there are any.
    """
    return [figure for tags in _measured(files) for figure in _of_size(files, tags)], []


def _measured(files: Sequence[RankFile]) -> list[dict[str, Any]]:
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        for block in file.blocks:
            tags = {key: block.tags.get(key) for key in _KEYS}
            countable = all(isinstance(tags[key], int) and int(tags[key] or 0) > 0 for key in ("bytes", "world"))
            if block.metric == "both_time" and tags["op"] in COLLECTIVES and countable:
                seen.setdefault(tuple(tags.values()), tags)
    return list(seen.values())


def _of_size(files: Sequence[RankFile], tags: dict[str, Any]) -> list[Figure]:
    samples = {part: by_rank(files, f"{part}_time", tags) for part in PARTS}
    reason = _missing(samples, tags)
    times = {part: stacked(rows) for part, rows in samples.items()}
    if reason is None and not all(rows.size and np.isfinite(rows).all() and rows.min() > 0 for rows in times.values()):
        reason = "durations should be above 0 s, and there should be some"
    if reason is not None:
        return [
            Figure("overlap_share", "1", None, tags, better="higher", reason=reason),
            Figure("exposed_communication", "s", None, tags, better="lower", reason=reason),
            *_checked(files, tags),
        ]
    compute, communication, both = (times[part].max(axis=0) for part in PARTS)
    figures = [
        _figure("overlap_share", "1", overlap_shares(compute, communication, both), tags, better="higher"),
        _figure("exposed_communication", "s", exposed_times(compute, both), tags, better="lower"),
    ]
    figures += [
        _figure(f"{part}_time", "s", of_rounds, tags, better="lower")
        for part, of_rounds in zip(PARTS, (compute, communication, both), strict=True)
    ]
    return figures + _checked(files, tags)


def _figure(
    metric: str, unit: str, of_rounds: Array, tags: dict[str, Any], better: Literal["higher", "lower"]
) -> Figure:
    return Figure(metric, unit, median_interval(of_rounds), tags, better=better)


def _missing(samples: Mapping[str, Mapping[int, Array]], tags: Mapping[str, Any]) -> str | None:
    # Without a rank that took part, the slowest rank may be the one that is missing.
    wanted = COLLECTIVES[str(tags["op"])].ranks or int(tags["world"])
    fewest = min(len(rows) for rows in samples.values())
    if fewest != wanted:
        return f"only {fewest} of {wanted} ranks recorded their times"
    # Rounds are pairs of the three: where one is missing it is not known which belong together.
    uneven = len({len(array) for rows in samples.values() for array in rows.values()}) > 1
    return "ranks recorded different numbers of rounds" if uneven else None


def _checked(files: Sequence[RankFile], tags: dict[str, Any]) -> list[Figure]:
    wrong = by_rank(files, "check_errors", tags)
    if len(wrong) < int(tags["world"]):
        reason = f"only {len(wrong)} of {tags['world']} ranks recorded their checks"
        return [Figure("check_errors", "1", None, tags, reason=reason)]
    total = float(sum(array.sum() for array in wrong.values()))
    method = "wrong elements of data and products over all ranks, alone and at the same time"
    figures = [Figure("check_errors", "1", Estimate(total, None, None, len(wrong), method), tags)]
    late = float(sum(array.sum() for array in by_rank(files, "late_elements", tags).values()))
    if late:
        method = "wrong when the handle had been awaited, right a moment later"
        figures.append(Figure("late_elements", "1", Estimate(late, None, None, len(wrong), method), tags))
    return figures
