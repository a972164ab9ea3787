"""Figures of comms/bench.py: percentiles of single calls, and rates from back-to-back batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from assay.arrival import Lateness, widened
from assay.bandwidth import COLLECTIVES, algbw, busbw, deepspeed_throughput
from assay.estimates import (
    Estimate,
    compare_pairs,
    mean_of_batches,
    median_interval,
)
from assay.record import Block, RankFile
from assay.scoring import arrival
from assay.scoring.arrival import call_times
from assay.scoring.baseline import VARIANTS
from assay.scoring.ceilings import find, find_figure, least_share
from assay.scoring.latency import latency_figures, sweep_models
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import Array, by_rank, device_of, rate, stacked, tail_figure

_BY_ROOT = ("gather", "scatter", "reduce")
# What tells two measurements apart. From placement on, a tag is there only where it is not the usual.
_KEYS = ("op", "bytes", "dtype", "backend", "world", "placement", *VARIANTS, "means")


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures of every op and size, in the order measured. No curves."""
    measured = _measured(files)
    figures = [figure for tags in measured for figure in _of_size(files, tags, limits)]
    figures += _compared(files, measured)
    figures = [replace(figure, tags=_told(figure.tags)) for figure in figures]
    return [*figures, *latency_figures(sweep_models(figures))], []


def late_ranks(files: list[RankFile]) -> list[Lateness]:
    """The late rank of every measurement that has one, in the order measured."""
    return [replace(item, tags=_told(item.tags)) for item in arrival.late_ranks(files, _measured(files))]


def _told(tags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tags.items() if value is not None}


def _measured(files: Sequence[RankFile]) -> list[dict[str, Any]]:
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        for block in file.of("batch_time"):
            tags = {key: block.tags.get(key) for key in _KEYS}
            countable = all(isinstance(tags[key], int) and int(tags[key] or 0) >= 0 for key in ("bytes", "world"))
            if tags["op"] in COLLECTIVES and countable and tags["world"]:
                # A block taken in another order is the same measurement's, but no part of its samples.
                seen.setdefault(tuple(tags.values()), {**tags, "order": None})
    return list(seen.values())


def _of_size(files: list[RankFile], tags: dict[str, Any], limits: list[Figure]) -> list[Figure]:
    return [*_single_calls(files, tags), *_back_to_back(files, tags, limits), *_checked(files, tags)]


def _single_calls(files: list[RankFile], tags: dict[str, Any]) -> list[Figure]:
    refused = _refusal(files, tags)
    missing = refused or _missing(by_rank(files, "call_exit", tags), tags)
    if missing:
        return [Figure("call_time_p50", "s", None, tags, better="lower", reason=missing)]
    times, how, error = call_times(files, tags)
    if not times.size:
        return [Figure("call_time_p50", "s", None, tags, better="lower", reason="no single calls recorded")]
    p50 = widened(median_interval(times), error)
    typical = Figure("call_time_p50", "s", replace(p50, method=f"{how}; {p50.method}"), tags, better="lower")
    tails = [tail_figure(f"call_time_p{q}", times, q, how, tags) for q in (95, 99)]
    # Where clocks allow it, transfer is the time of a call by another name; what is told of it is the waiting.
    tails += _on_device(files, tags)
    waits = [figure for figure in arrival.figures(files, tags) if figure.metric == "waiting_time"]
    return [typical, *tails, *_again(files, tags), *waits]


def _on_device(files: list[RankFile], tags: dict[str, Any]) -> list[Figure]:
    """What calls take by the events of an accelerator: on each rank's own clock, the longest of any rank."""
    entries, exits = stacked(by_rank(files, "device_entry", tags)), stacked(by_rank(files, "device_exit", tags))
    if not entries.size or entries.shape != exits.shape:
        return []
    p50 = median_interval((exits - entries).max(axis=0))
    method = f"device events, longest over ranks, waiting included; {p50.method}"
    return [Figure("device_time_p50", "s", replace(p50, method=method), tags, better="lower")]


def _again(files: list[RankFile], tags: dict[str, Any]) -> list[Figure]:
    """The same calls, timed once more after the sweep, with sizes in random order."""
    times, _, error = call_times(files, {**tags, "order": "random"})
    if not times.size:
        return []
    p50 = widened(median_interval(times), error)
    method = f"after the sweep, sizes in random order; {p50.method}"
    return [Figure("call_time_p50_random_order", "s", replace(p50, method=method), tags, better="lower")]


def _back_to_back(files: list[RankFile], tags: dict[str, Any], limits: list[Figure]) -> list[Figure]:
    op, size, world = str(tags["op"]), int(tags["bytes"]), int(tags["world"])
    batches, calls = by_rank(files, "batch_time", tags), _calls(files, tags)
    refused = _refusal(files, tags)
    reason = (
        refused
        or _missing(batches, tags)
        or (None if len(calls) == 1 else "batches of different lengths cannot be averaged")
    )
    slowest = stacked(batches).max(axis=0)
    loaded = (COLLECTIVES[op].ranks or world) * int(tags["groups"] or 1)
    if reason is None and not (slowest.size and slowest.min() > 0):
        reason = "durations should be above 0 s"
    if reason is not None:
        return [
            Figure("busbw", "B/s", None, tags, better="higher", reason=reason),
            Figure("throughput_deepspeed", "bit/s", None, tags, better="higher", reason=reason),
        ]
    per_call = mean_of_batches(slowest, calls.pop())
    if not COLLECTIVES[op].bus(world):  # it moves no bytes
        return [Figure("batch_call_time", "s", per_call, tags, better="lower")]
    bus = rate(per_call, lambda t: busbw(op, size, t, world))
    # The bytes of a buffer cannot move faster than the memory that holds it can be copied. What one rank alone gathers,
    # scatters or reduces has no such ceiling among those that are measured: the others leave it their share of the memory.
    copy = find_figure(limits, "copy_rate", loaded, device_of(files)) if op not in _BY_ROOT else None
    ceiling = find(limits, "copy_rate", loaded, device_of(files)) if copy else None
    payload = 0.5 * (2 if op == "pt2pt_bidirectional" else 1)  # of bytes read and written; twice where both ways count
    share = bus.value / (ceiling[0] * payload) if ceiling else None
    least = least_share(bus.value, copy, payload)
    named = f"payload of {ceiling[1]}" if ceiling else None
    throughput = rate(per_call, lambda t: deepspeed_throughput(op, size, t, world))
    return [
        Figure("batch_call_time", "s", per_call, tags, better="lower"),
        Figure("algbw", "B/s", rate(per_call, lambda t: algbw(size, t)), tags, better="higher"),
        Figure("busbw", "B/s", bus, tags, better="higher", share=share, share_of=named, least_share=least),
        Figure("throughput_deepspeed", "bit/s", throughput, tags, better="higher"),
    ]


def _checked(files: list[RankFile], tags: dict[str, Any]) -> list[Figure]:
    wrong = by_rank(files, "check_errors", {key: value for key, value in tags.items() if key != "order"})
    ranks = int(tags["world"]) * int(tags["groups"] or 1)
    refused = _refusal(files, tags)
    if refused or len(wrong) < ranks:
        reason = refused or f"only {len(wrong)} of {ranks} ranks recorded their check"
        return [Figure("check_errors", "1", None, tags, reason=reason)]
    total = float(sum(array.sum() for array in wrong.values()))
    looks = max(array.size for array in wrong.values())
    method = f"wrong elements over all ranks after {looks} calls on patterned data, most of them timed ones"
    figures = [Figure("check_errors", "1", Estimate(total, None, None, len(wrong), method), tags)]
    early = _left_early(files, tags)
    if early:
        method = "calls that a rank left before the last rank had entered, which cannot be"
        figures.append(Figure("left_early", "1", Estimate(float(early), None, None, len(wrong), method), tags))
    late = sum(array.sum() for array in by_rank(files, "late_elements", tags).values())
    if late:
        method = "wrong when the call returned, right a moment later"
        figures.append(Figure("late_elements", "1", Estimate(float(late), None, None, len(wrong), method), tags))
    return figures


def _left_early(files: list[RankFile], tags: dict[str, Any]) -> int:
    if not COLLECTIVES[str(tags["op"])].waits or tags["groups"] or not has_one_clock(files):
        return 0
    entries, exits = stacked(by_rank(files, "call_entry", tags)), stacked(by_rank(files, "call_exit", tags))
    if not entries.size or entries.shape != exits.shape:
        return 0
    return int(np.count_nonzero(exits.min(axis=0) < entries.max(axis=0)))


def _compared(files: list[RankFile], measured: Sequence[dict[str, Any]]) -> list[Figure]:
    """Time over a second transport / time over the first, from batches that took turns."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for tags in measured:
        groups.setdefault(repr([value for key, value in tags.items() if key not in ("backend", "means")]), []).append(
            tags
        )
    pairs = [group for group in groups.values() if len(group) == 2]
    figures = []
    for first, second in pairs:
        batches = [by_rank(files, "batch_time", tags) for tags in (first, second)]
        calls = [_calls(files, tags) for tags in (first, second)]
        if any(_missing(samples, first) for samples in batches) or any(len(counts) != 1 for counts in calls):
            continue
        times = [stacked(samples).max(axis=0) / max(counts) for samples, counts in zip(batches, calls, strict=True)]
        if len(times[0]) != len(times[1]) or not len(times[0]) or min(map(np.min, times)) <= 0:
            continue
        ratio = compare_pairs(times[0].tolist(), times[1].tolist(), metrics=len(pairs)).ratio
        figures.append(Figure("time_ratio", "1", ratio, {**second, "versus": first["backend"]}, better="lower"))
    return figures


def _refusal(files: Iterable[RankFile], tags: Mapping[str, Any]) -> str | None:
    """Why a transport could not do this at all, as recorded."""
    return next((block.reason for block in _batches(files, tags) if block.reason), None)


def _batches(files: Iterable[RankFile], tags: Mapping[str, Any]) -> Iterator[Block]:
    for file in files:
        for block in file.of("batch_time", tags["op"], tags["bytes"]):
            if _agree(block.tags, tags):
                yield block


def _agree(tags: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(tags.get(key) == value for key, value in wanted.items())


def _missing(samples: Mapping[int, Array], tags: Mapping[str, Any]) -> str | None:
    # Without a rank that took part, the slowest rank may be the one that is missing.
    wanted = (COLLECTIVES[str(tags["op"])].ranks or int(tags["world"])) * int(tags["groups"] or 1)
    if len(samples) != wanted:
        return f"only {len(samples)} of {wanted} ranks recorded their times"
    uneven = len({len(array) for array in samples.values()}) > 1
    return "ranks recorded different numbers of samples" if uneven else None


def has_one_clock(files: Iterable[RankFile]) -> bool:
    """Whether all ranks read the same monotonic clock, so that their entries and exits can be compared."""
    return len({file.header.clock_id for file in files if file.header}) == 1


def _calls(files: list[RankFile], tags: Mapping[str, Any]) -> set[int]:
    return {int(block.tags.get("calls") or 0) for block in _batches(files, tags) if not block.reason}
