"""Ceilings of the machine out of specs/limits.py's raw times, and which of them bounds a figure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from assay.estimates import Estimate
from assay.record import Block, RankFile
from assay.scoring.result import Figure

_RATES = {"gemm_time": ("gemm_rate", "FLOP/s"), "copy_time": ("copy_rate", "B/s")}
_NEEDED = ("loaded", "ranks", "work", "begun")
WINDOWS = 10


class _Key(NamedTuple):
    metric: str
    loaded: str
    ranks: int
    dtype: str | None
    device: str


def derive(files: Sequence[RankFile]) -> list[Figure]:
    """One figure per ceiling: FLOP/s or B/s per device, in the best tenth of the time in which all ranks worked."""
    groups: dict[_Key, dict[str, list[Block]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        for block in file.blocks:
            tags = block.tags
            known = block.metric in _RATES and all(isinstance(tags.get(key), int | float | str) for key in _NEEDED)
            if file.header and known and block.samples.size and float(block.samples.min()) > 0:
                dtype = tags.get("dtype")
                key = _Key(
                    block.metric,
                    str(tags["loaded"]),
                    int(tags["ranks"] or 0),
                    str(dtype) if dtype else None,
                    file.header.device,
                )
                # Ranks without a common clock cannot be laid over each other: each host is judged by itself.
                groups[key][file.header.clock_id].append(block)
    return [_ceiling(key, list(hosts.values())) for key, hosts in sorted(groups.items(), key=str)]


def _ceiling(key: _Key, hosts: list[list[Block]]) -> Figure:
    name, unit = _RATES[key.metric]
    loaded, ranks = key.loaded, key.ranks
    tags = {"loaded": loaded, "ranks": ranks, "device": key.device} | ({"dtype": key.dtype} if key.dtype else {})
    working = sum(map(len, hosts))
    if working < (1 if loaded == "alone" else ranks):
        return Figure(name, unit, None, tags, better="higher", reason=f"only {working} of {ranks} ranks recorded it")
    rates = [(len(blocks), *_rates(blocks)) for blocks in hosts]
    best = sum(count * rate for count, rate, _ in rates) / working
    if not all(rate for _, rate, _ in rates):
        return Figure(name, unit, None, tags, better="higher", reason="the ranks were never all at work at once")
    whole = sum(count * rate for count, _, rate in rates) / working
    samples = sum(block.samples.size for blocks in hosts for block in blocks)
    method = (
        f"best tenth of the time with {_count(working)} at work, {samples} samples; over all of it {whole / best:.0%}"
    )
    return Figure(name, unit, Estimate(best, None, None, samples, method), tags, better="higher")


def _rates(blocks: list[Block]) -> tuple[float, float]:
    """Work per second and rank, in the best of the windows and over all of them.

    Only time in which every rank was at work counts: the fastest sample of a rank may be one that it took alone.
    """
    edges = [float(block.tags["begun"] or 0) + np.concatenate([[0.0], np.cumsum(block.samples)]) for block in blocks]
    start, end = max(edge[0] for edge in edges), min(edge[-1] for edge in edges)
    if end <= start:
        return 0.0, 0.0
    grid = np.linspace(start, end, WINDOWS + 1)
    done = sum(
        float(block.tags["work"] or 0) * np.interp(grid, edge, np.arange(edge.size))
        for block, edge in zip(blocks, edges, strict=True)
    )
    rates = np.diff(done) / np.diff(grid) / len(blocks)
    return float(rates.max()), float(rates.mean())


def _count(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def find(
    limits: Iterable[Figure], metric: str, ranks: int, device: str | None, dtype: str | None = None
) -> tuple[float, str] | None:
    """The ceiling of `device` for `ranks` ranks loaded together (alone for one rank): its value, its name for readers."""
    loaded = "together" if ranks > 1 else "alone"
    wanted = {"ranks": ranks, "loaded": loaded, "device": device} | ({"dtype": dtype} if dtype else {})
    for figure in limits:
        if figure.metric == metric and figure.value and all(figure.tags.get(k) == v for k, v in wanted.items()):
            return figure.value, f"measured {metric.removesuffix('_rate')} {loaded}, {_count(ranks)}"
    return None
