"""Function tests: did a model train to its targets? Loss, its variance against a baseline's curve, and PPL.

Support = Σ αᵢ·[model i meets every target after the required steps], after the evaluation report 0.2.1, sections 2.1 and
3.1.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from assay.estimates import Estimate
from assay.scoring.baseline import ALIKE, Baseline, BaselineCurve, Losses, Steps, curve_tags, loss_of, same_data
from assay.scoring.matching import agrees, figure_tags, label_of, meant_to_measure
from assay.scoring.profile_format import Match, ProfileRow, ProfileSection, Targets
from assay.scoring.result import CaseResult, Check, Curve, Figure, Row, RunResult, Section
from assay.throughput import FINAL_STEPS
from assay.units import format_si

_FORMULA = (
    "Σ weight × [every target met after the required steps]; "
    "variance = mean of (dᵢ − mean d)², dᵢ = loss minus the baseline's loss of step i"
)
_CLOSER = ("data", "engine", "world", "dtype", "int8", "micro_batch")  # of several curves, what shares more of these
_FINETUNE = "workloads/finetune"


def variance(losses: Losses, baseline: Losses) -> float:
    """Mean of (dᵢ − mean d)², dᵢ = loss − baseline loss of the same step; in loss units squared.

    Both of one length. Raises ValueError for fewer than two steps: their variance would be 0 whatever they are.
    """
    if losses.shape != baseline.shape or losses.size < 2:
        raise ValueError(f"expected two curves of the same two steps or more, got {losses.size} and {baseline.size}")
    return float(np.var(losses - baseline))


def function_section(result: RunResult, section: ProfileSection, baseline: Baseline | None) -> Section:
    """A section of function tests. NA: not submitted, or cannot be judged; 0: failed, or a target was missed."""
    total = sum(row.weight for row in section.rows)
    rows = [_row(result, section, row, row.weight / total, baseline) for row in section.rows]
    scored = [row for row in rows if row.score is not None]
    score = sum(row.weight * (row.score or 0.0) for row in scored) if scored else None
    return Section(section.key, section.title, _FORMULA, rows, score, "", section.metric, section.chapter)


def _row(result: RunResult, section: ProfileSection, row: ProfileRow, weight: float, baseline: Baseline | None) -> Row:
    nothing = _checks(row.targets, {}) if row.targets else ()
    if row.match is None or row.targets is None:
        return Row(row.title or "not known", weight, None, None, "1", None, None, row.reason or "", (), nothing)
    label = row.title or label_of(row.match)
    cases = [case for case in result.cases if _is_of(case, section, row.match)]
    passed = [case for case in cases if case.status is not None and case.status.state == "passed"]
    if passed:
        # A short run of the same model measures speed; the function test is the one that trained longest.
        match, targets = row.match, row.targets
        case = max(passed, key=lambda one: (not _inapplicable(one, match, targets), loss_of(one)[0].size))
        score, note, checks = _judged(case, row.match, row.targets, baseline)
        data = str(case_tags(case).get("data") or "")
        return Row(label, weight, None, None, "1", None, score, note, (), checks, None, case.name, data)
    failed = next((case for case in cases if meant_to_measure(case, row.match)), None)
    if failed is not None:
        note = f"case {failed.name} did not pass"
        return Row(label, weight, None, None, "1", None, 0.0, note, (), nothing, None, failed.name)
    return Row(label, weight, None, None, "1", None, None, "not submitted", (), nothing)


def _is_of(case: CaseResult, section: ProfileSection, match: Match) -> bool:
    return (not section.scripts or case.script in section.scripts) and agrees(match, case_tags(case))


def case_tags(case: CaseResult) -> dict[str, Any]:
    """What is known of a training: its options, and where it recorded steps, the tags of these."""
    figure = _tgs_of(case)
    told = figure_tags(case, figure) if figure else {"script": case.script, **case.labels}
    return {"world": case.world, **case.options, **told}


def _tgs_of(case: CaseResult) -> Figure | None:
    return next((figure for figure in case.figures if figure.metric == "tgs"), None)


def _judged(
    case: CaseResult, match: Match, targets: Targets, baseline: Baseline | None
) -> tuple[float | None, str, tuple[Check, ...]]:
    """Score, its reason and the checks of a case that passed."""
    steps, losses = loss_of(case)
    if not steps.size:
        return 0.0, f"case {case.name} recorded no loss", _checks(targets, {})
    until, short = _required(case, targets, steps)
    measured = _measured(case, baseline, steps[:until], losses[:until])
    inapplicable = _inapplicable(case, match, targets)
    if inapplicable or short:
        # What it reached is shown, and not judged.
        checks = tuple(replace(check, met=None) for check in _checks(targets, measured))
        return (None, inapplicable, checks) if inapplicable else (0.0, short, checks)
    checks = _checks(targets, measured)
    missed = [check for check in checks if check.met is False]
    unknown = [check for check in checks if check.target is not None and check.met is None]
    if missed:
        return 0.0, "; ".join(map(_missed, missed)), checks
    if unknown:
        return None, "; ".join(f"{check.name} cannot be judged: {check.note}" for check in unknown), checks
    return 1.0, f"every target met after {until:,} steps", checks


def _inapplicable(case: CaseResult, match: Match, targets: Targets) -> str:
    """Why the targets say nothing about this training; empty where they do."""
    tags = case_tags(case)
    generated = tags.get("weights") in (None, "generated")
    if targets.weights == "pretrained" and generated:
        return "weights were generated; the target holds for pretrained weights"
    if tags.get("data") == "dummy":
        return "the data were random tokens; the target holds for text"
    if tags.get("script") == _FINETUNE and tags.get("data") == "own" and "data" not in match:
        return "the records were made by assay; the target holds for the public data"
    return ""


def _required(case: CaseResult, targets: Targets, steps: Steps) -> tuple[int, str]:
    """How many steps count, and why they are too few (empty: they are not)."""
    if targets.steps is not None:
        short = "" if steps.size >= targets.steps else f"trained {steps.size:,} of {targets.steps:,} steps"
        return min(targets.steps, steps.size), short
    if targets.epochs is None:
        return steps.size, ""
    done = next((figure.value for figure in case.figures if figure.metric == "epochs"), None)
    if done is None:
        asked = case.options.get("epochs")
        done = float(asked) if isinstance(asked, int | float) and asked > 0 else None
    if done is None:
        return steps.size, "how many epochs were trained was not recorded"
    if done < targets.epochs - 1e-9:
        return steps.size, f"trained {done:.3g} of {targets.epochs:g} epochs"
    # A step may cross the end of an epoch, so that three epochs are rounded up to whole steps.
    return max(1, min(math.ceil(steps.size * targets.epochs / done - 1e-9), steps.size)), ""


def _measured(
    case: CaseResult, baseline: Baseline | None, steps: Steps, losses: Losses
) -> dict[str, tuple[float | None, str]]:
    """check → value and how it was found; (None, reason) where unknown."""
    last = losses[-FINAL_STEPS:]
    curve = _curve_for(case, baseline)
    ppl = next((figure for figure in case.figures if figure.metric == "ppl"), None)
    return {
        "loss": (float(np.mean(last)), f"mean of the last {last.size} of {steps.size:,} steps"),
        "variance": _variance(steps, losses, curve.first_step, np.asarray(curve.samples))
        if curve
        else (None, "no loss curve of the like in the baseline"),
        "ppl": (ppl.value, ppl.reason or "held-out data, at the end") if ppl else (None, "not evaluated"),
    }


def _checks(targets: Targets | None, measured: Mapping[str, tuple[float | None, str]]) -> tuple[Check, ...]:
    found = []
    for name in ("loss", "variance", "ppl"):
        target = getattr(targets, name, None)
        value, note = measured.get(name, (None, ""))
        # A loss that is no number meets nothing.
        met = None if target is None or value is None else bool(value <= target)
        if name == "ppl" and target is not None and value is None and measured:
            met = False  # evaluating is the submitter's part; a baseline's curve is not
        found.append(Check(name, target, value, met, note))
    return tuple(found)


def _missed(check: Check) -> str:
    if check.measured is None:
        return f"{check.name}: {check.note}"
    return f"{check.name} {format_si(check.measured, '1')} is above {check.target:g}"


def _curve_for(case: CaseResult, baseline: Baseline | None) -> BaselineCurve | None:
    """The baseline's curve of the same training: of what is alike in the rest, the most alike."""
    tags = case_tags(case)
    own = curve_tags(case, _tgs_of(case))
    alike = [
        curve
        for curve in (baseline.curves if baseline else [])
        if all(curve.match.get(key) == own.get(key) for key in ALIKE)
        and same_data(curve.match.get("data"), tags.get("data"))
    ]
    return max(alike, key=lambda curve: sum(curve.match.get(key) == tags.get(key) for key in _CLOSER), default=None)


def _variance(steps: Steps, losses: Losses, first: int, base: Losses) -> tuple[float | None, str]:
    places = steps - first
    both = (places >= 0) & (places < base.size)
    if int(both.sum()) < 2:
        return None, "the baseline's curve has no steps in common"
    if not np.isfinite(losses[both]).all():
        return math.inf, "a loss was no number"
    return variance(losses[both], base[places[both]]), f"over {int(both.sum()):,} steps that both have"


def baseline_curves(result: RunResult, baseline: Baseline | None) -> dict[str, Curve]:
    """case → the baseline's loss of the same training, cut to the steps that the case has; cases without one are left out."""
    found = {}
    for case in result.cases:
        steps, _ = loss_of(case)
        curve = _curve_for(case, baseline) if steps.size else None
        if curve is None:
            continue
        numbers = np.arange(curve.first_step, curve.first_step + len(curve.samples))
        kept = (numbers >= steps[0]) & (numbers <= steps[-1])
        if kept.any():
            samples = np.asarray(curve.samples)[kept]
            found[case.name] = Curve("loss", "1", samples, numbers[kept], {"phase": "baseline"})
    return found


def deviations(result: RunResult, curves: Mapping[str, Curve]) -> dict[str, Figure]:
    """case → loss_variance against the baseline's curve, over all steps that both have."""
    found = {}
    for case in result.cases:
        curve = curves.get(case.name)
        if curve is None or curve.steps is None:
            continue
        value, note = _variance(*loss_of(case), int(curve.steps[0]), curve.samples)
        method = f"of the loss against the baseline's, {note}"
        estimate = Estimate(value, None, None, curve.samples.size, method) if value is not None else None
        found[case.name] = Figure("loss_variance", "1", estimate, {}, "lower", reason=None if estimate else note)
    return found
