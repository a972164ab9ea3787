"""Figures of training scripts: TGS, MFU, step times, loss, perplexity, accuracy, memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from assay.estimates import CONFIDENCE, Estimate, mean_of_batches, median_interval
from assay.record import RankFile
from assay.scoring.ceilings import find, find_figure, least_share
from assay.scoring.datasheet import Datasheet, find_datasheet, peak
from assay.scoring.result import CaseResult, Curve, Figure
from assay.scoring.samples import (
    Array,
    by_rank,
    device_of,
    first_step,
    scalar,
    scaled,
    stacked,
    tail_figure,
    training_tags,
    world_of,
)
from assay.scoring.specifications import PARAMETERS
from assay.throughput import FINAL_STEPS, tgs

_MASKED, _FINETUNE = "workloads/bert", "workloads/finetune"
SCRIPTS = ("workloads/pretrain", _MASKED, _FINETUNE)
_MEASURED = {"phase": "measured"}

# Metrics of one sample that only some workloads record.
_SOMETIMES = {"trained_parameters": "1", "base_weight_bytes": "B"}
# What evaluation on held-out data may measure beside the loss: which way is better.
_SCORES: dict[str, Literal["higher", "lower"]] = {"nsp_loss": "lower", "nsp_accuracy": "higher"}


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures and curves of one training case."""
    ranks = by_rank(files, "step_time", _MEASURED)
    world = world_of(files)
    if not ranks:
        return [], _curves(files)
    tags = training_tags(files, options)
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
    figures += [_final_loss(files, tags), *_perplexity(files, tags), *_evaluated(files, tags)]
    figures += [
        _largest(files, "peak_memory", "B", tags, "lower"),
        _largest(files, "setup_time", "s", tags, "lower"),
        _tokens(files, tags),
        _known(files, "parameters", "1", tags),
        _known(files, "flops_per_token", "FLOP", tags),
    ]
    figures += [_known(files, metric, unit, tags) for metric, unit in _SOMETIMES.items() if _is_there(files, metric)]
    return [*figures, *_epochs(files, options, tags)], _curves(files)


def _epochs(files: list[RankFile], options: Mapping[str, Any], tags: Mapping[str, Any]) -> list[Figure]:
    """Passes over the records, warm-up included: steps × global batch / records. Nothing where data have no end."""
    records, _ = scalar(files, "records")
    batch = options.get("global_batch")
    if not records or not isinstance(batch, int):
        return []
    losses = by_rank(files, "loss", {})
    steps = losses[min(losses)].size if losses else 0
    method = f"{steps:,} steps × {batch:,} records / {records:,.0f} records"
    return [Figure("epochs", "1", Estimate(steps * batch / records, None, None, 1, method), tags)]


def _tgs(files: list[RankFile], steps: Array) -> Estimate | None:
    """TGS over all measured steps; its interval is that of the steps of the rank that took longest.

    Where steps differ in tokens (texts of unequal length), the interval is that of a ratio of two sums (Cochran, Sampling
    Techniques, 6.3): from each time goes what its tokens explain, R · (tokens − mean tokens) with R = time / tokens.
    """
    recorded = by_rank(files, "tokens", _MEASURED)
    if not recorded:
        return None
    tokens = recorded[min(recorded)][: steps.shape[1]]
    world, count = steps.shape
    value = tgs(float(tokens.sum()), list(steps[:, : tokens.size]))
    longest = steps[steps.sum(axis=1).argmax()][: tokens.size]
    per_step = mean_of_batches(longest - longest.sum() / tokens.sum() * (tokens - tokens.mean()), 1)
    method = f"all tokens over all time of {count} steps"
    if per_step.low is None or per_step.high is None or per_step.low <= 0:
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
    estimate = scaled(rate, flops / ceiling[0], f"TGS × FLOPs per token / {ceiling[1]}")
    bound = find_figure(limits, "gemm_rate", int(tags["world"]), device_of(files), str(tags.get("dtype")))
    least = least_share(rate.value * flops, bound)
    return Figure("mfu", "1", estimate, tags, "higher", share=estimate.value, share_of=ceiling[1], least_share=least)


def with_printed_peaks(cases: Sequence[CaseResult], sheets: Sequence[Datasheet] | None = None) -> list[CaseResult]:
    """The cases with `mfu_datasheet` beside each MFU whose device's printed peak is known: a second denominator, named.

    sheets: datasheets of one's own; the shipped ones without.
    """
    return [replace(case, figures=[*case.figures, *_of_printed_peak(case, sheets)]) for case in cases]


def _of_printed_peak(case: CaseResult, sheets: Sequence[Datasheet] | None) -> list[Figure]:
    named = {figure.metric: figure for figure in case.figures}
    rate, flops = named.get("tgs"), named.get("flops_per_token")
    sheet = find_datasheet(str(case.about.get("device_name", "")), sheets)
    if rate is None or rate.estimate is None or flops is None or flops.value is None or sheet is None:
        return []
    dtype = rate.tags.get("dtype")
    keys = next(
        (one.datasheet for one in PARAMETERS if one.metric == "gemm_rate" and one.match.get("dtype") == dtype), ()
    )
    printed = next((value for key in keys if (value := peak(sheet, key))), None)
    if printed is None:
        return []
    name = f"datasheet {sheet.name}, {dtype}"
    estimate = scaled(rate.estimate, flops.value / printed, f"TGS × FLOPs per token / {name}")
    return [Figure("mfu_datasheet", "1", estimate, rate.tags, "higher", share=estimate.value, share_of=name)]


def _final_loss(files: list[RankFile], tags: Mapping[str, Any]) -> Figure:
    losses = by_rank(files, "loss", _MEASURED)
    if not any(values.size for values in losses.values()):
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
    """PPL = exp(mean loss per token on held-out text); of a masked model, per masked token."""
    loss, reason = scalar(files, "eval_loss")
    if loss is None:
        return [Figure("ppl", "1", None, tags, better="lower", reason=reason)]
    method = f"mean loss per {'masked token' if _script_of(files) == _MASKED else 'token'} on held-out data"
    figures = [Figure("eval_loss", "1", Estimate(loss, None, None, 1, method), tags, better="lower")]
    # exp overflows a float above 709; a loss like that is a diverged run, whose perplexity is infinite in effect.
    ppl = math.exp(loss) if loss < 700 else math.inf
    return [*figures, Figure("ppl", "1", Estimate(ppl, None, None, 1, f"exp of the {method}"), tags, better="lower")]


def _evaluated(files: list[RankFile], tags: Mapping[str, Any]) -> list[Figure]:
    found = []
    for metric, better in _SCORES.items():
        if _is_there(files, metric):
            value, reason = scalar(files, metric)
            estimate = Estimate(value, None, None, 1, "on held-out data") if value is not None else None
            found.append(Figure(metric, "1", estimate, tags, better=better, reason=reason))
    return found


def _script_of(files: list[RankFile]) -> str | None:
    return next((file.header.script for file in files if file.header), None)


def _is_there(files: list[RankFile], metric: str) -> bool:
    return any(file.of(metric) for file in files)


def _tokens(files: list[RankFile], tags: Mapping[str, Any]) -> Figure:
    """Tokens of all measured steps, padding not counted."""
    recorded = by_rank(files, "tokens", _MEASURED)
    if not recorded:
        return Figure("tokens", "tokens", None, tags, reason="no tokens recorded")
    counts = recorded[min(recorded)]
    method = f"sum over {counts.size:,} measured steps, padding not counted"
    return Figure("tokens", "tokens", Estimate(float(counts.sum()), None, None, counts.size, method), tags)


def _largest(
    files: list[RankFile], metric: str, unit: str, tags: Mapping[str, Any], better: Literal["higher", "lower"]
) -> Figure:
    values = {rank: array[-1] for rank, array in by_rank(files, metric, {}).items() if not np.isnan(array[-1])}
    if not values:
        return Figure(metric, unit, None, tags, better=better, reason=scalar(files, metric)[1])
    # `how` is how it was measured. Older records say so in `method`, which fine-tuning uses for what it trains.
    keys = ("how",) if _script_of(files) == _FINETUNE else ("how", "method")
    blocks = [block for file in files for block in file.of(metric)]
    method = next((str(one.tags[key]) for key in keys for one in blocks if key in one.tags), "measured")
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
