"""Figures of training scripts: TGS, MFU, step times, loss, perplexity, memory."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from assay.estimates import CONFIDENCE, Estimate, mean_of_batches, median_interval
from assay.record import RankFile
from assay.scoring.ceilings import find, find_figure, least_share
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import Array, by_rank, device_of, first_step, scalar, stacked, tail_figure, world_of
from assay.throughput import FINAL_STEPS, tgs

_MEASURED = {"phase": "measured"}
_TAG_OPTIONS = ("seq_len", "global_batch", "micro_batch")


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures and curves of one training case."""
    ranks = by_rank(files, "step_time", _MEASURED)
    world = world_of(files)
    if not ranks:
        return [], _curves(files)
    tags = _tags(files, options, world)
    if len(ranks) < world:
        # A share of the ranks would still give a number, and a better one: TGS counts devices.
        reason = f"only {len(ranks)} of {world} ranks recorded their steps"
        return [Figure("tgs", "tokens/s/device", None, tags, better="higher", reason=reason)], _curves(files)
    if len({len(times) for times in ranks.values()}) > 1:
        reason = "ranks recorded different numbers of steps"
        return [Figure("tgs", "tokens/s/device", None, tags, better="higher", reason=reason)], _curves(files)
    steps = stacked(ranks)
    slowest = steps.max(axis=0)  # a step is over when its slowest rank is
    rate = _tgs(files, steps)
    figures = [
        Figure("tgs", "tokens/s/device", rate, tags, better="higher", reason=None if rate else "no tokens recorded"),
        _mfu(files, rate, tags, limits),
        Figure("step_time_p50", "s", median_interval(slowest), tags, better="lower"),
    ]
    figures += [tail_figure(f"step_time_p{q}", slowest, q, "slowest rank", tags) for q in (95, 99)]
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


def _tgs(files: list[RankFile], steps: Array) -> Estimate | None:
    """TGS over all measured steps; its interval is that of the steps of the rank that took longest."""
    recorded = by_rank(files, "tokens", _MEASURED)
    if not recorded:
        return None
    tokens = recorded[min(recorded)][: steps.shape[1]]
    world, count = steps.shape
    value = tgs(float(tokens.sum()), list(steps[:, : tokens.size]))
    per_step = mean_of_batches(steps[steps.sum(axis=1).argmax()], 1)
    method = f"all tokens over all time of {count} steps"
    if per_step.low is None or per_step.high is None:
        return Estimate(value, None, None, count, f"{method}; steps too few or too correlated for an interval")
    tokens_per_device = float(tokens.mean()) / world
    low, high = min(tokens_per_device / per_step.high, value), max(tokens_per_device / per_step.low, value)
    return Estimate(value, low, high, count, f"{method}; {CONFIDENCE:.0%} interval over steps")


def _mfu(files: list[RankFile], rate: Estimate | None, tags: Mapping[str, Any], limits: list[Figure]) -> Figure:
    """MFU = TGS × model FLOPs per token / the measured GEMM ceiling per device; recomputation never counts."""
    flops, reason = scalar(files, "flops_per_token")
    ceiling = find(limits, "gemm_rate", int(tags["world"]), device_of(files), str(tags.get("dtype")))
    if rate is None or flops is None or ceiling is None:
        why = reason or (f"no measured GEMM ceiling in {tags.get('dtype')}" if ceiling is None else "no TGS")
        return Figure("mfu", "1", None, tags, better="higher", reason=why)
    factor = flops / ceiling[0]
    low = rate.low * factor if rate.low is not None else None
    high = rate.high * factor if rate.high is not None else None
    estimate = Estimate(rate.value * factor, low, high, rate.samples, f"TGS × FLOPs per token / {ceiling[1]}")
    bound = find_figure(limits, "gemm_rate", int(tags["world"]), device_of(files), str(tags.get("dtype")))
    least = least_share(rate.value * flops, bound)
    return Figure("mfu", "1", estimate, tags, "higher", share=estimate.value, share_of=ceiling[1], least_share=least)


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
