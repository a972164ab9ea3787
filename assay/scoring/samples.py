"""Raw samples of one metric across ranks, gathered from blocks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.record import RankFile

Array = NDArray[np.float64]


def by_rank(files: Iterable[RankFile], metric: str, match: Mapping[str, Any]) -> dict[int, Array]:
    """rank → all samples of `metric` whose tags hold everything in `match`, in the order written."""
    found: dict[int, list[Array]] = defaultdict(list)
    for file in files:
        if file.header is None:
            continue
        for block in file.blocks:
            if block.metric == metric and all(block.tags.get(key) == value for key, value in match.items()):
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
