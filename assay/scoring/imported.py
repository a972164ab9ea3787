"""Figures of imported runs: what another tool printed, with our formulas. No spread is known where it printed none."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from assay.bandwidth import COLLECTIVES, algbw, busbw, deepspeed_throughput
from assay.estimates import FEWEST_FOR_PERCENTILE, Estimate, median_interval
from assay.record import Block, RankFile
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import rate, tail_figure

CALL_TIME = "reported_call_time"
CHECK_ERRORS = "reported_check_errors"
SCRIPTS = {tool: f"import/{tool}" for tool in ("nccl-tests", "osu", "deepspeed")}
"""Tool → what stands for a script in the case of an imported run."""

# What tells times of one collective at one size apart; everything else is the collective's setting.
_OF_TIME = ("statistic", "timing", "over", "calls")
_TIMINGS = {
    "back_to_back": "calls back to back",
    "waited_for": "calls, each waited for",
    "call_by_call": "calls, each after a barrier",
    "device_events": "calls by device events, without a barrier",
    "ping_pong": "halved round trips",
}
_NAMES = {"fastest_rank": "fastest rank's mean", "slowest_rank": "slowest rank's mean"}


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures of every collective, setting and size, in the order of the file. No curves, no shares of ceilings: the
    machine is not this one."""
    groups: dict[tuple[tuple[str, Any], ...], list[Block]] = {}
    for block in (block for file in files for block in file.blocks):
        if block.metric in (CALL_TIME, CHECK_ERRORS) and _countable(block.tags):
            setting = tuple((key, value) for key, value in block.tags.items() if key not in _OF_TIME)
            groups.setdefault(setting, []).append(block)
    return [figure for key, blocks in groups.items() for figure in _of_size(dict(key), blocks)], []


def _countable(tags: Mapping[str, Any]) -> bool:
    counts = [tags.get(key) for key in ("bytes", "world")]
    return tags.get("op") in COLLECTIVES and all(isinstance(count, int) and count > 0 for count in counts)


def _of_size(tags: dict[str, Any], blocks: list[Block]) -> Iterator[Figure]:
    times: dict[tuple[str, str], list[Block]] = {}
    for block in blocks:
        if block.metric == CALL_TIME:
            times.setdefault((str(block.tags.get("timing")), str(block.tags.get("statistic"))), []).append(block)
    for (timing, statistic), found in times.items():
        if statistic == "sample":
            yield from _every_call(tags, found)
        elif statistic == "mean":
            yield from _mean(tags, timing, found)
        else:
            yield _printed(tags, statistic, found)
    checks = [block for block in blocks if block.metric == CHECK_ERRORS]
    if checks:
        yield _checked(tags, checks)


def _mean(tags: dict[str, Any], timing: str, blocks: list[Block]) -> Iterator[Figure]:
    time = _as_printed("mean", tags, blocks)
    metric = "batch_call_time" if timing == "back_to_back" else "call_time_mean"
    yield Figure(metric, "s", time, tags, better="lower")
    if timing == "ping_pong":  # one message at a time: its bytes over its time are no bandwidth of the link
        return
    op, size, world = str(tags["op"]), int(tags["bytes"]), int(tags["world"])
    yield Figure("algbw", "B/s", rate(time, lambda t: algbw(size, t)), tags, better="higher")
    yield Figure("busbw", "B/s", rate(time, lambda t: busbw(op, size, t, world)), tags, better="higher")
    throughput = rate(time, lambda t: deepspeed_throughput(op, size, t, world))
    yield Figure("throughput_deepspeed", "bit/s", throughput, tags, better="higher")


def _every_call(tags: dict[str, Any], blocks: list[Block]) -> Iterator[Figure]:
    times = np.concatenate([block.samples for block in blocks])
    first = blocks[0].tags
    how = f"{_TIMINGS.get(str(first.get('timing')), '')}, {first.get('over')}, as {tags.get('tool')} wrote them"
    p50 = median_interval(times)
    yield Figure("call_time_p50", "s", replace(p50, method=f"{how}; {p50.method}"), tags, better="lower")
    for q in FEWEST_FOR_PERCENTILE:
        yield tail_figure(f"call_time_p{q}", times, q, how, tags)


def _printed(tags: dict[str, Any], statistic: str, blocks: list[Block]) -> Figure:
    metric = f"{statistic}_time" if statistic in _NAMES else f"call_time_{statistic}"
    calls = blocks[0].tags.get("calls")
    fewest = FEWEST_FOR_PERCENTILE.get(int(statistic[1:])) if statistic[1:].isdigit() else None
    if fewest and isinstance(calls, int) and calls < fewest:
        reason = f"{calls} samples, {statistic} needs {fewest}"
        return Figure(metric, "s", None, tags, better="lower", reason=reason)
    return Figure(metric, "s", _as_printed(_NAMES.get(statistic, statistic), tags, blocks), tags, better="lower")


def _checked(tags: dict[str, Any], blocks: list[Block]) -> Figure:
    samples = np.concatenate([block.samples for block in blocks])
    method = f"wrong elements over all ranks by the check of {tags.get('tool')}"
    if tags.get("tool") == "osu":
        method += ", which tells only whether there were any (1)"
    estimate = Estimate(float(samples.sum()), None, None, samples.size, method)
    return Figure("check_errors", "1", estimate, tags)


def _as_printed(name: str, tags: Mapping[str, Any], blocks: list[Block]) -> Estimate:
    """The number that the tool printed; where it printed several of the same, their median."""
    values = np.concatenate([block.samples for block in blocks])
    first = blocks[0].tags
    calls = first.get("calls")
    timing = _TIMINGS.get(str(first.get("timing")), "calls")
    method = f"{name} of {calls if calls else 'an unknown number of'} {timing}, {first.get('over')}, as {tags.get('tool')} printed it"
    if values.size == 1:
        return Estimate(float(values[0]), None, None, 1, method)
    spread = median_interval(values)
    return replace(spread, method=f"{method} {values.size} times; {spread.method}")
