"""Raw samples of one metric across ranks, gathered from blocks."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.estimates import FEWEST_FOR_PERCENTILE, Estimate, percentile_interval
from assay.record import RankFile
from assay.scoring.result import Figure

Array = NDArray[np.float64]

# Options of a training by which its figures are told apart: what makes a step cheaper is among them.
_LORA = ("lora_rank", "lora_targets", "lora_dropout")
SETTINGS = (
    *("seq_len", "cutoff", "global_batch", "micro_batch", "method", "int8", *_LORA),
    *("train_on_inputs", "group_by_length", "mask_share", "max_predictions", "short_share", "dropout"),
)


def by_rank(files: Iterable[RankFile], metric: str, match: Mapping[str, Any]) -> dict[int, Array]:
    """rank → all samples of `metric` whose tags hold everything in `match`, in the order written."""
    found: dict[int, list[Array]] = defaultdict(list)
    for file in files:
        if file.header is None:
            continue
        for block in (
            file.of(metric, match["op"], match["bytes"]) if {"op", "bytes"} <= match.keys() else file.of(metric)
        ):
            if all(block.tags.get(key) == value for key, value in match.items()):
                found[file.header.rank].append(block.samples)
    return {rank: np.concatenate(arrays) for rank, arrays in found.items()}


def stacked(samples: Mapping[int, Array]) -> Array:
    """[ranks, samples], cut to what every rank has: a rank that died early ends the comparison there."""
    if not samples:
        return np.empty((0, 0))
    shortest = min(len(array) for array in samples.values())
    return np.stack([samples[rank][:shortest] for rank in sorted(samples)])


def first_step(files: Iterable[RankFile], metric: str, match: Mapping[str, Any]) -> int:
    """The step of the first sample of `metric`; 0 where the records do not number them."""
    steps = [
        block.first_step
        for file in files
        for block in file.blocks
        if block.metric == metric
        and block.first_step is not None
        and all(block.tags.get(key) == value for key, value in match.items())
    ]
    return min(steps, default=0)


def scalar(files: Iterable[RankFile], metric: str) -> tuple[float | None, str | None]:
    """A one-sample metric of any rank: its value, or None and the reason that was recorded."""
    for file in files:
        for block in file.blocks:
            if block.metric == metric and block.samples.size:
                value = float(block.samples[-1])
                return (None, block.reason) if np.isnan(value) and block.reason else (value, None)
    return None, "not recorded"


def training_tags(files: Sequence[RankFile], options: Mapping[str, Any]) -> dict[str, Any]:
    """Tags of a training's figures: its ranks, what its records of steps say, and the options that tell it apart."""
    block = next((block for file in files for block in file.of("step_time")), None)
    told = {key: value for key, value in block.tags.items() if key != "phase"} if block else {}
    return {"world": world_of(files), **told, **settings(options)}


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options in SETTINGS that are given and mean something, as single values."""
    adapters = options.get("method", "lora") == "lora"
    return {
        key: ",".join(sorted(map(str, value))) if isinstance(value := options[key], list | tuple) else value
        for key in SETTINGS
        if options.get(key) is not None and (adapters or key not in _LORA)
    }


def world_of(files: Iterable[RankFile]) -> int:
    """The number of ranks that the ranks themselves say they were; 0 without a header."""
    return max((file.header.world for file in files if file.header), default=0)


def device_of(files: Iterable[RankFile]) -> str | None:
    """torch's type of the device that the ranks worked on; None without a header."""
    return next((file.header.device for file in files if file.header), None)


def rate(time: Estimate, of: Callable[[float], float]) -> Estimate:
    """The rate that `of` makes of a time in s. Each rate comes from one time; the interval's ends swap places."""
    low = of(time.high) if time.high else None
    high = of(time.low) if time.low else None
    return Estimate(of(time.value), low, high, time.samples, time.method)


def scaled(estimate: Estimate, factor: float, method: str) -> Estimate:
    """The estimate and its interval times a positive factor."""
    low, high = (None if bound is None else bound * factor for bound in (estimate.low, estimate.high))
    return Estimate(estimate.value * factor, low, high, estimate.samples, method)


def tail_figure(metric: str, samples: Array, q: int, how: str, tags: Mapping[str, Any]) -> Figure:
    """The q-th percentile (95 or 99) of seconds; unknown, with the reason, where samples are too few to have one."""
    if samples.size < FEWEST_FOR_PERCENTILE[q]:
        reason = f"{samples.size} samples, p{q} needs {FEWEST_FOR_PERCENTILE[q]}"
        return Figure(metric, "s", None, tags, better="lower", reason=reason)
    estimate = percentile_interval(samples, q)
    return Figure(metric, "s", replace(estimate, method=f"{how}; {estimate.method}"), tags, better="lower")
