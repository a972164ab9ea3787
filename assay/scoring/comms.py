"""Figures of comms/bench.py: percentiles of single calls, and rates from back-to-back batches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.bandwidth import COLLECTIVES, algbw, busbw, deepspeed_throughput
from assay.estimates import Estimate, completion_times, mean_of_batches, median_interval, slowest_rank_times
from assay.record import RankFile
from assay.scoring.ceilings import find, find_figure, least_share
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import Array, by_rank, device_of, stacked, tail_figure

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
            tags = {key: block.tags.get(key) for key in _KEYS}
            countable = all(isinstance(tags[key], int) and int(tags[key] or 0) > 0 for key in ("bytes", "world"))
            if block.metric == "batch_time" and tags["op"] in COLLECTIVES and countable:
                seen.setdefault(tuple(tags.values()), tags)
    return list(seen.values())


def _of_size(files: list[RankFile], tags: dict[str, Any], limits: list[Figure]) -> list[Figure]:
    return [*_single_calls(files, tags), *_back_to_back(files, tags, limits), *_checked(files, tags)]


def _single_calls(files: list[RankFile], tags: dict[str, Any]) -> list[Figure]:
    missing = _missing(by_rank(files, "call_exit", tags), tags)
    if missing:
        return [Figure("call_time_p50", "s", None, tags, better="lower", reason=missing)]
    times = call_times(files, tags)
    if not times.size:
        return [Figure("call_time_p50", "s", None, tags, better="lower", reason="no single calls recorded")]
    how = "last entry to last exit" if has_one_clock(files) else "longest over ranks, waiting included"
    p50 = median_interval(times)
    typical = Figure("call_time_p50", "s", replace(p50, method=f"{how}; {p50.method}"), tags, better="lower")
    return [typical, *(tail_figure(f"call_time_p{q}", times, q, how, tags) for q in (95, 99))]


def _back_to_back(files: list[RankFile], tags: dict[str, Any], limits: list[Figure]) -> list[Figure]:
    op, size, world = str(tags["op"]), int(tags["bytes"]), int(tags["world"])
    batches, calls = by_rank(files, "batch_time", tags), _calls(files, tags)
    reason = _missing(batches, tags) or (None if len(calls) == 1 else "batches of different lengths cannot be averaged")
    slowest = stacked(batches).max(axis=0)
    if reason is None and not (slowest.size and slowest.min() > 0):
        reason = "durations should be above 0 s"
    if reason is not None:
        return [
            Figure("busbw", "B/s", None, tags, better="higher", reason=reason),
            Figure("throughput_deepspeed", "bit/s", None, tags, better="higher", reason=reason),
        ]
    per_call = mean_of_batches(slowest, calls.pop())
    bus = _rate(per_call, lambda t: busbw(op, size, t, world))
    # The bytes of a buffer cannot move faster than the memory that holds it can be copied.
    ceiling = find(limits, "copy_rate", world, device_of(files))
    share = bus.value / (ceiling[0] / 2) if ceiling else None
    least = least_share(bus.value, find_figure(limits, "copy_rate", world, device_of(files)), 0.5)
    named = f"payload of {ceiling[1]}" if ceiling else None
    throughput = _rate(per_call, lambda t: deepspeed_throughput(op, size, t, world))
    return [
        Figure("batch_call_time", "s", per_call, tags, better="lower"),
        Figure("algbw", "B/s", _rate(per_call, lambda t: algbw(size, t)), tags, better="higher"),
        Figure("busbw", "B/s", bus, tags, better="higher", share=share, share_of=named, least_share=least),
        Figure("throughput_deepspeed", "bit/s", throughput, tags, better="higher"),
    ]


def _checked(files: list[RankFile], tags: dict[str, Any]) -> list[Figure]:
    wrong = by_rank(files, "check_errors", tags)
    if len(wrong) < int(tags["world"]):
        reason = f"only {len(wrong)} of {tags['world']} ranks recorded their check"
        return [Figure("check_errors", "1", None, tags, reason=reason)]
    total = float(sum(array.sum() for array in wrong.values()))
    method = "wrong elements over all ranks after one call on patterned data"
    return [Figure("check_errors", "1", Estimate(total, None, None, len(wrong), method), tags)]


def _missing(samples: Mapping[int, Array], tags: Mapping[str, Any]) -> str | None:
    # Without a rank that took part, the slowest rank may be the one that is missing.
    wanted = 2 if tags["op"] == "pt2pt" else int(tags["world"])
    if len(samples) != wanted:
        return f"only {len(samples)} of {wanted} ranks recorded their times"
    uneven = len({len(array) for array in samples.values()}) > 1
    return "ranks recorded different numbers of samples" if uneven else None


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


def _calls(files: list[RankFile], tags: Mapping[str, Any]) -> set[int]:
    return {
        int(block.tags["calls"] or 0)
        for file in files
        for block in file.blocks
        if block.metric == "batch_time" and all(block.tags.get(key) == value for key, value in tags.items())
    }


def _rate(time: Estimate, of: Callable[[float], float]) -> Estimate:
    # Each rate comes from one time; the interval's ends swap places.
    low = of(time.high) if time.high else None
    high = of(time.low) if time.low else None
    return Estimate(of(time.value), low, high, time.samples, time.method)
