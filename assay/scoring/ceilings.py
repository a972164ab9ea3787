"""Ceilings of the machine out of specs/limits.py's raw times, and the share that a figure reaches of them."""

from collections.abc import Iterable, Sequence

import numpy as np

from assay.estimates import Estimate
from assay.record import RankFile
from assay.scoring.result import Figure

_RATES = {"gemm_time": ("gemm_rate", "FLOP/s"), "copy_time": ("copy_rate", "B/s")}


def derive(files: Sequence[RankFile]) -> list[Figure]:
    """One figure per ceiling: per device, the fastest sample of every rank, mean over ranks."""
    keys = {
        (block.metric, block.tags["loaded"], block.tags.get("dtype"))
        for file in files
        for block in file.blocks
        if block.metric in _RATES
    }
    return [_ceiling(files, metric, str(loaded), dtype) for metric, loaded, dtype in sorted(keys, key=str)]


def _ceiling(files: Iterable[RankFile], metric: str, loaded: str, dtype: object) -> Figure:
    best, typical, count, ranks = [], [], 0, 1
    for file in files:
        for block in file.blocks:
            tags = block.tags
            if (block.metric, tags.get("loaded"), tags.get("dtype")) == (metric, loaded, dtype) and block.samples.size:
                work = float(tags["work"] or 0)
                best.append(work / block.samples.min())
                typical.append(work / float(np.median(block.samples)))
                count += block.samples.size
                ranks = int(tags["ranks"] or 1)
    value = float(np.mean(best))
    method = f"fastest of {count} samples, mean over {len(best)} rank{'s' if len(best) > 1 else ''}; the median sample reaches {np.mean(typical) / value:.0%}"
    name, unit = _RATES[metric]
    about = {"loaded": loaded, "ranks": ranks} | ({"dtype": dtype} if dtype else {})
    return Figure(name, unit, Estimate(value, None, None, count, method), about, better="higher")


def find(limits: Iterable[Figure], metric: str, ranks: int, dtype: str | None = None) -> tuple[float, str] | None:
    """The ceiling for `ranks` ranks loaded together (alone for one rank): its value and its name for readers."""
    loaded = "together" if ranks > 1 else "alone"
    for figure in limits:
        wanted = {"ranks": ranks, "loaded": loaded} | ({"dtype": dtype} if dtype else {})
        fits = figure.metric == metric and all(figure.tags.get(key) == value for key, value in wanted.items())
        if fits and figure.value:
            return (
                figure.value,
                f"measured {metric.removesuffix('_rate')} {loaded}, {ranks} rank{'s' if ranks > 1 else ''}",
            )
    return None
