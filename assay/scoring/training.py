"""Figures of training scripts: TGS, MFU, step times, loss, perplexity, memory."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from assay.estimates import Estimate, mean_of_batches, median_interval, percentile
from assay.record import RankFile
from assay.scoring.ceilings import find
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import Array, by_rank, first_step, scalar, stacked

FINAL_STEPS = 10  # the final loss is the mean over so many last steps: a single step's loss is mostly its batch
_INTERVAL_BLOCKS = 20
_MEASURED = {"phase": "measured"}
_TAG_OPTIONS = ("seq_len", "global_batch", "micro_batch")


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures and curves of one training case."""
    steps = stacked(by_rank(files, "step_time", _MEASURED))
    if not steps.size:
        return [], _curves(files)
    # Ranks march together: a step lasts as long as in the slowest rank.
    slowest = steps.max(axis=0)
    world = len(steps)
    tags = _tags(files, options, world)
    tgs = _tgs(files, slowest, world)
    figures = [
        Figure("tgs", "tokens/s/device", tgs, tags, better="higher", reason=None if tgs else "no tokens recorded"),
        _mfu(files, tgs, tags, limits),
        Figure("step_time_p50", "s", median_interval(slowest), tags, better="lower"),
    ]
    for q in (95, 99):
        tail = Estimate(
            percentile(slowest, q), None, None, slowest.size, f"percentile of {slowest.size} steps, slowest rank"
        )
        figures.append(Figure(f"step_time_p{q}", "s", tail, tags, better="lower"))
    figures += [_final_loss(files, tags), *_perplexity(files, tags)]
    figures += [
        _largest(files, "peak_memory", "B", tags, "lower"),
        _largest(files, "setup_time", "s", tags, "lower"),
        _known(files, "parameters", "1", tags),
        _known(files, "flops_per_token", "FLOP", tags),
    ]
    return figures, _curves(files)


def _tags(files: list[RankFile], options: Mapping[str, Any], world: int) -> dict[str, Any]:
    tags: dict[str, Any] = {"world": world}
    for file in files:
        for block in file.blocks:
            if block.metric == "step_time":
                tags |= {key: value for key, value in block.tags.items() if key != "phase"}
                return tags | {key: options[key] for key in _TAG_OPTIONS if key in options}
    return tags


def _tgs(files: list[RankFile], slowest: Array, world: int) -> Estimate | None:
    """TGS = tokens per sequence × global batch / (step time × devices), over all measured steps together (seed 002)."""
    recorded = by_rank(files, "tokens", _MEASURED)
    if not recorded:
        return None
    tokens = recorded[min(recorded)][: slowest.size]
    length = max(1, slowest.size // _INTERVAL_BLOCKS)
    count = slowest.size // length
    blocks = slowest[: count * length].reshape(count, length).sum(axis=1)
    spread = mean_of_batches(blocks, length)
    value = float(tokens.sum() / slowest[: tokens.size].sum() / world)
    per_step = float(tokens.mean()) / world
    method = f"all tokens over all time of {slowest.size} steps; 95 % interval over {count} blocks of {length} steps"
    if spread.low is None or spread.high is None:
        return Estimate(value, None, None, slowest.size, method.partition(";")[0] + ", too few for an interval")
    low, high = min(per_step / spread.high, value), max(per_step / spread.low, value)
    return Estimate(value, low, high, slowest.size, method)


def _mfu(files: list[RankFile], tgs: Estimate | None, tags: Mapping[str, Any], limits: list[Figure]) -> Figure:
    """MFU = TGS × model FLOPs per token / the measured GEMM ceiling per device; recomputation never counts."""
    flops, reason = scalar(files, "flops_per_token")
    ceiling = find(limits, "gemm_rate", int(tags["world"]), str(tags.get("dtype")))
    if tgs is None or flops is None or ceiling is None:
        why = reason or (f"no measured GEMM ceiling in {tags.get('dtype')}" if ceiling is None else "no TGS")
        return Figure("mfu", "1", None, tags, better="higher", reason=why)
    factor = flops / ceiling[0]
    low = tgs.low * factor if tgs.low is not None else None
    high = tgs.high * factor if tgs.high is not None else None
    estimate = Estimate(tgs.value * factor, low, high, tgs.samples, f"TGS × FLOPs per token / {ceiling[1]}")
    return Figure("mfu", "1", estimate, tags, better="higher", share=estimate.value, share_of=ceiling[1])


def _final_loss(files: list[RankFile], tags: Mapping[str, Any]) -> Figure:
    losses = by_rank(files, "loss", _MEASURED)
    if not losses:
        return Figure("final_loss", "1", None, tags, better="lower", reason="no loss recorded")
    last = losses[min(losses)][-FINAL_STEPS:]
    return Figure(
        "final_loss",
        "1",
        Estimate(float(np.mean(last)), None, None, last.size, f"mean of the last {last.size} steps"),
        tags,
        better="lower",
    )


def _perplexity(files: list[RankFile], tags: Mapping[str, Any]) -> list[Figure]:
    """PPL = exp(mean loss per token on held-out text)."""
    loss, reason = scalar(files, "eval_loss")
    if loss is None:
        return [Figure("ppl", "1", None, tags, better="lower", reason=reason)]
    method = "mean loss per token on held-out data"
    # exp overflows a float above 709; a loss like that is a diverged run, whose perplexity is infinite in effect.
    ppl = math.exp(loss) if loss < 700 else math.inf
    return [
        Figure("eval_loss", "1", Estimate(loss, None, None, 1, method), tags, better="lower"),
        Figure("ppl", "1", Estimate(ppl, None, None, 1, f"exp of the {method}"), tags, better="lower"),
    ]


def _largest(
    files: list[RankFile], metric: str, unit: str, tags: Mapping[str, Any], better: Literal["higher", "lower"]
) -> Figure:
    values = {rank: array[-1] for rank, array in by_rank(files, metric, {}).items() if not np.isnan(array[-1])}
    if not values:
        return Figure(metric, unit, None, tags, better=better, reason=scalar(files, metric)[1])
    method = next(
        (str(b.tags["method"]) for f in files for b in f.blocks if b.metric == metric and "method" in b.tags),
        "measured",
    )
    estimate = Estimate(
        float(max(values.values())),
        None,
        None,
        len(values),
        f"{method}, largest over {len(values)} rank{'s' if len(values) > 1 else ''}",
    )
    return Figure(metric, unit, estimate, tags, better=better)


def _known(files: list[RankFile], metric: str, unit: str, tags: Mapping[str, Any]) -> Figure:
    value, reason = scalar(files, metric)
    return Figure(
        metric, unit, Estimate(value, None, None, 1, "counted") if value is not None else None, tags, reason=reason
    )


def _curves(files: list[RankFile]) -> list[Curve]:
    curves = []
    for metric, unit in (("loss", "1"), ("grad_norm", "1"), ("learning_rate", "1"), ("step_time", "s")):
        for phase in ("warmup", "measured"):
            match = {"phase": phase}
            samples = stacked(by_rank(files, metric, match))
            if samples.size:
                start = first_step(files, metric, match)
                steps = np.arange(start, start + samples.shape[1])
                curves.append(Curve(metric, unit, samples.max(axis=0), steps, match))
    return curves
