"""Figures of comms/bench.py: percentiles of single calls, and rates from back-to-back batches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.bandwidth import algbw, busbw, deepspeed_throughput
from assay.estimates import Estimate, completion_times, mean_of_batches, median_interval, percentile, slowest_rank_times
from assay.record import RankFile
from assay.scoring.ceilings import find
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import Array, by_rank, stacked

_KEYS = ("op", "bytes", "dtype", "backend", "world")


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures of every op and size, in the order measured. No curves."""
    figures: list[Figure] = []
    for tags in _measured(files):
        figures += _of_size(files, tags, limits)
    return figures, []


def _measured(files: Sequence[RankFile]) -> list[dict[str, Any]]:
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        for block in file.blocks:
            if block.metric == "batch_time":
                tags = {key: block.tags.get(key) for key in _KEYS}
                seen.setdefault(tuple(tags.values()), tags)
    return list(seen.values())


def _of_size(files: list[RankFile], tags: dict[str, Any], limits: list[Figure]) -> list[Figure]:
    figures = []
    op, size, world = str(tags["op"]), int(tags["bytes"]), int(tags["world"])
    times = call_times(files, tags)
    if times.size:
        p50 = median_interval(times)
        how = "last entry to last exit" if has_one_clock(files) else "longest over ranks, waiting included"
        figures.append(Figure("call_time_p50", "s", replace(p50, method=f"{how}; {p50.method}"), tags, better="lower"))
        for q in (95, 99):
            tail = Estimate(
                percentile(times, q), None, None, times.size, f"{how}; percentile of {times.size} single calls"
            )
            figures.append(Figure(f"call_time_p{q}", "s", tail, tags, better="lower"))
    batches = by_rank(files, "batch_time", tags)
    calls = _calls(files, tags)
    if batches and calls:
        per_call = mean_of_batches(stacked(batches).max(axis=0), calls)
        figures.append(Figure("batch_call_time", "s", per_call, tags, better="lower"))
        figures.append(Figure("algbw", "B/s", _rate(per_call, lambda t: algbw(size, t)), tags, better="higher"))
        bus = _rate(per_call, lambda t: busbw(op, size, t, world))
        # The bytes of a buffer cannot move faster than the memory that holds it can be copied.
        ceiling = find(limits, "copy_rate", world)
        share = bus.value / (ceiling[0] / 2) if ceiling else None
        named = f"payload of {ceiling[1]}" if ceiling else None
        figures.append(Figure("busbw", "B/s", bus, tags, better="higher", share=share, share_of=named))
        seed = _rate(per_call, lambda t: deepspeed_throughput(op, size, t, world))
        figures.append(Figure("throughput_deepspeed", "bit/s", seed, tags, better="higher"))
    wrong = by_rank(files, "check_errors", tags)
    if wrong:
        total = float(sum(array.sum() for array in wrong.values()))
        method = "wrong elements over all ranks after one call on patterned data"
        figures.append(Figure("check_errors", "1", Estimate(total, None, None, len(wrong), method), tags))
    return figures


def call_times(files: list[RankFile], tags: Mapping[str, Any]) -> Array:
    """Seconds of single calls over the ranks that took part: entry of the last to exit of the last.

    Where ranks have no common clock, the longest duration over ranks.
    """
    entries, exits = stacked(by_rank(files, "call_entry", tags)), stacked(by_rank(files, "call_exit", tags))
    shortest = min(entries.shape[1], exits.shape[1])
    entries, exits = entries[:, :shortest], exits[:, :shortest]
    if not entries.size:
        return entries.reshape(-1)
    return (completion_times if has_one_clock(files) else slowest_rank_times)(entries, exits)


def has_one_clock(files: Iterable[RankFile]) -> bool:
    """Whether all ranks read the same monotonic clock, so that their entries and exits can be compared."""
    return len({file.header.clock_id for file in files if file.header}) == 1


def _calls(files: list[RankFile], tags: Mapping[str, Any]) -> int:
    for file in files:
        for block in file.blocks:
            if block.metric == "batch_time" and all(block.tags.get(key) == value for key, value in tags.items()):
                return int(block.tags["calls"] or 0)
    return 0


def _rate(time: Estimate, of: Callable[[float], float]) -> Estimate:
    # Each rate comes from one time; the interval's ends swap places.
    low = of(time.high) if time.high else None
    high = of(time.low) if time.low else None
    return Estimate(of(time.value), low, high, time.samples, time.method)
