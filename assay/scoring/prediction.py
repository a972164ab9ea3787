"""What a training was predicted to need, out of its options and of the ceilings of the same run, beside what it needed.

Predictions are no measurements: their figures say so, have no samples, and are never scored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from assay.estimates import Estimate
from assay.memory_estimate import MemoryEstimate, estimate_memory, parts_in_words
from assay.options import SCRIPTS, TrainingOptions
from assay.scoring.ceilings import find
from assay.scoring.latency import sweep_models
from assay.scoring.result import CaseResult, Figure
from assay.step_prediction import Line, StepCeilings, StepPrediction, predict_step, step_load
from assay.units import format_si

MEMORY, STEP = "predicted_peak_memory", "predicted_step_time"
MEASURED = {MEMORY: "peak_memory", STEP: "step_time_p50"}
"""A prediction's metric → that of what it predicts."""

Lines = Mapping[tuple[str, int], Line]


def with_predictions(cases: Sequence[CaseResult], limits: Sequence[Figure]) -> list[CaseResult]:
    """The cases, those that trained with a figure of each kind of prediction more; unknown ones with the reason.

    cases: with all their figures; of collectives measured in any of them, latency and bandwidth are used. limits: the
    run's ceilings.
    """
    lines = lines_of(cases)
    return [replace(case, figures=[*case.figures, *predictions(case, limits, lines)]) for case in cases]


def lines_of(cases: Iterable[CaseResult]) -> dict[tuple[str, int], Line]:
    """(op, ranks) → the α–β model of the first sweep of it that has one, in this run."""
    found: dict[tuple[str, int], Line] = {}
    for case in cases:
        for sweep in sweep_models(case.figures):
            if sweep.model and sweep.model.bandwidth:
                line = Line(sweep.model.alpha.value, sweep.model.bandwidth.value)
                found.setdefault((sweep.op, int(sweep.tags["world"])), line)
    return found


def predictions(case: CaseResult, limits: Sequence[Figure], lines: Lines) -> list[Figure]:
    """Of one case: peak memory of a rank and seconds of a step; nothing for a case that did not train."""
    script = SCRIPTS.get(case.script)
    if script is None or not issubclass(script, TrainingOptions):
        return []
    tags = {key: case.options.get(key) for key in ("model", "engine", "precision")} | {"world": case.world}
    try:
        options = script.model_validate(dict(case.options))
        memory = estimate_memory(options, case.world)
    except (ValidationError, KeyError, ValueError, AttributeError):
        reason = "this version does not know the options or the model"
        return [Figure(metric, unit, None, tags, reason=reason) for metric, unit in ((MEMORY, "B"), (STEP, "s"))]
    step = _step(case, options, limits, lines)
    unknown = step if isinstance(step, str) else None
    return [
        Figure(MEMORY, "B", Estimate(float(memory.peak), None, None, 0, _memory_method(memory)), tags),
        Figure(STEP, "s", None if isinstance(step, str) else _range(step), tags, reason=unknown),
    ]


def _memory_method(memory: MemoryEstimate) -> str:
    return f"predicted, not measured: tensors of one rank, from shapes: {parts_in_words(memory)}"


def _range(step: StepPrediction) -> Estimate:
    parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in step.parts.items() if seconds)
    return Estimate((step.low + step.high) / 2, step.low, step.high, 0, f"{step.method}; value: the middle; {parts}")


def _step(case: CaseResult, options: TrainingOptions, limits: Sequence[Figure], lines: Lines) -> StepPrediction | str:
    flops = next((figure.value for figure in case.figures if figure.metric == "flops_per_token"), None)
    if flops is None:
        return "the FLOPs per token were not recorded"
    ceilings, _ = step_ceilings(limits, options, case.world, case.about.get("device"), lines)
    return predict_step(step_load(options, case.world, flops), ceilings)


def step_ceilings(
    limits: Sequence[Figure], options: TrainingOptions, world: int, device: str | None, lines: Lines
) -> tuple[StepCeilings, str]:
    """Those of the measured ceilings that bound a step of the options on the device, and their names with values."""
    products = find(limits, "gemm_rate", world, device, options.dtype)
    copies = find(limits, "copy_rate", world, device)
    known = ((products, "FLOP/s"), (copies, "B/s"))
    names = ", ".join(f"{one[1]} {format_si(one[0], unit)}" for one, unit in known if one)
    return StepCeilings(products[0] if products else None, copies[0] if copies else None, lines), names
