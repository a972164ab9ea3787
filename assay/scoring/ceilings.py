"""Ceilings of the machine out of raw times of work that does nothing else, and which of them bounds a figure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from assay.estimates import Estimate, best_window, interval_ranks
from assay.record import Block, RankFile
from assay.scoring.result import Figure

RATES = {
    "gemm_time": "gemm_rate",
    "copy_time": "copy_rate",
    "triad_time": "triad_rate",
    "host_copy_time": "host_copy_rate",
    "link_time": "link_rate",
}
_NEEDED = ("loaded", "ranks", "work", "begun")
_DISTINCT = ("dtype", "direction", "memory", "from", "to", "ways")  # tags that make two ceilings of one metric

Tags = Mapping[str, Any]


class _Key(NamedTuple):
    metric: str
    loaded: str
    ranks: int
    distinct: tuple[tuple[str, Any], ...]
    device: str


def derive(files: Sequence[RankFile]) -> list[Figure]:
    """One figure per ceiling: work per second and device while all ranks were at work, median over turns."""
    groups: dict[_Key, list[tuple[RankFile, Block]]] = defaultdict(list)
    unknown: list[Figure] = []
    for file in files:
        for block in file.blocks:
            if file.header is None or block.metric not in RATES:
                continue
            tags = block.tags
            own = tuple((name, tags[name]) for name in _DISTINCT if name in tags)
            if block.reason is not None and file.header.rank == 0:
                named = {**dict(own), "device": file.header.device}
                unknown.append(Figure(RATES[block.metric], unit_of(block), None, named, "higher", reason=block.reason))
            usable = all(isinstance(tags.get(key), int | float | str) for key in _NEEDED)
            if usable and block.samples.size and float(block.samples.min()) > 0:
                key = _Key(block.metric, str(tags["loaded"]), int(tags["ranks"] or 0), own, file.header.device)
                groups[key].append((file, block))
    return [*(_ceiling(key, found) for key, found in groups.items()), *unknown]


def unit_of(block: Block) -> str:
    """The unit of the rate that a ceiling's times stand for: FLOP/s, OP/s for whole numbers, or B/s."""
    if block.metric != "gemm_time":
        return "B/s"
    return "OP/s" if str(block.tags.get("dtype")).startswith("int") else "FLOP/s"


def _ceiling(key: _Key, found: list[tuple[RankFile, Block]]) -> Figure:
    name, unit = RATES[key.metric], unit_of(found[0][1])
    tags: dict[str, Any] = {"loaded": key.loaded, "ranks": key.ranks, "device": key.device, **dict(key.distinct)}
    if "shape" in found[0][1].tags:
        tags["shape"] = found[0][1].tags["shape"]
    ranks = {file.header.rank for file, _ in found if file.header}
    if len(ranks) < (1 if key.loaded == "alone" else key.ranks):
        return Figure(name, unit, None, tags, "higher", reason=f"only {len(ranks)} of {key.ranks} ranks recorded it")
    turns: dict[int, list[tuple[RankFile, Block]]] = defaultdict(list)
    for file, block in found:
        turns[int(block.tags.get("turn") or 0)].append((file, block))
    seen = [_rate(turn) for turn in turns.values() if len(turn) == len(ranks)]
    seen = [(rate, windows) for rate, windows in seen if rate]  # ranks that missed each other tell nothing in that turn
    rates = [rate for rate, _ in seen]
    if not rates:
        return Figure(name, unit, None, tags, "higher", reason="the ranks were never all at work at once")
    # Six turns are too few to see whether they are correlated; all of them is the widest interval that they can give.
    low, high = (min(rates), max(rates)) if interval_ranks(len(rates)) else (None, None)
    samples = sum(block.samples.size for _, block in found)
    parts = min(windows for _, windows in seen)
    best = f"best of {parts} parts of each of" if parts > 1 else "all of each of"
    method = f"{_count(len(ranks))} at work, {best} {len(rates)} turns; median turn, lowest and highest"
    return Figure(name, unit, Estimate(float(np.median(rates)), low, high, samples, method), tags, better="higher")


def _rate(turn: list[tuple[RankFile, Block]]) -> tuple[float, int]:
    """Work per second and rank of one turn, in the best of how many parts; 0 if its ranks were never at work together.

    Ranks without a common clock cannot be laid over each other: each host is judged by itself.
    """
    hosts: dict[str, list[Block]] = defaultdict(list)
    for file, block in turn:
        hosts[file.header.clock_id if file.header else ""].append(block)
    found = [
        best_window([(float(b.tags["begun"] or 0), b.samples, float(b.tags["work"] or 0)) for b in blocks])
        for blocks in hosts.values()
    ]
    if not all(rate for rate, _ in found):
        return 0.0, 0
    total = sum(len(blocks) * rate for blocks, (rate, _) in zip(hosts.values(), found, strict=True))
    return total / len(turn), min(windows for _, windows in found)


def _count(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def find_figure(
    limits: Iterable[Figure], metric: str, ranks: int, device: str | None, dtype: str | None = None
) -> Figure | None:
    """The ceiling of `device` for `ranks` ranks loaded together (alone for one rank); None if it was not measured."""
    wanted = {"ranks": ranks, "loaded": "together" if ranks > 1 else "alone", "device": device}
    wanted |= {"dtype": dtype} if dtype else {}
    for figure in limits:
        if figure.metric == metric and figure.value and all(figure.tags.get(k) == v for k, v in wanted.items()):
            return figure
    return None


def least_share(value: float, ceiling: Figure | None, factor: float = 1.0) -> float | None:
    """`value` as a share of `factor` × the upper end of the ceiling's interval: above 1 it cannot be explained away."""
    if ceiling is None or ceiling.estimate is None:
        return None
    return value / (factor * (ceiling.estimate.high or ceiling.estimate.value))


def find(
    limits: Iterable[Figure], metric: str, ranks: int, device: str | None, dtype: str | None = None
) -> tuple[float, str] | None:
    """As find_figure: the ceiling's value and its name for readers."""
    figure = find_figure(limits, metric, ranks, device, dtype)
    if figure is None or figure.value is None:
        return None
    return figure.value, f"measured {metric.removesuffix('_rate')} {figure.tags['loaded']}, {_count(ranks)}"
