"""What a suite's trainings are going to need, before anything starts: memory, FLOPs, time; and what cannot fit.

No torch: a model of any size is planned in no time. Ceilings are those that were kept of earlier runs on this machine.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay import machine
from assay.ceiling_cache import ENTRY, cache_folder
from assay.errors import BadInput
from assay.memory_estimate import MemoryEstimate, changes_in_words, estimate_memory, parts_in_words
from assay.options.training import TrainingOptions
from assay.presets import EncoderShape
from assay.rundir import read_document
from assay.step_prediction import StepCeilings, StepLoad, StepPrediction, predict_step, step_load
from assay.suite import LIMITS_SCRIPT, Case, Suite, layout_of
from assay.suite_format import SuiteFile
from assay.trainee import Trainee
from assay.units import format_si

_MOMENTS = {
    "loss": "where forward ends",
    "backward": "in the backward of a layer",
    "update": "from the end of backward on",
}


@dataclass(frozen=True)
class TrainingPlan:
    """What one training is going to need of a rank. prediction: of a step's seconds, or why there is none.

    source: which ceilings the prediction is made of.
    """

    memory: MemoryEstimate
    load: StepLoad
    prediction: StepPrediction | str
    source: str


def plan_training(case: Case, env: Mapping[str, str]) -> TrainingPlan | None:
    """The plan of a case; None if it trains nothing. env: of this process, for the folder of kept ceilings."""
    options = case.options
    if not isinstance(options, TrainingOptions):
        return None
    load = step_load(options, case.world, flops_per_token(options))
    ceilings, source = kept_ceilings(options, case.world, env)
    prediction = predict_step(load, ceilings) if ceilings else "no ceilings measured on this machine"
    return TrainingPlan(estimate_memory(options, case.world), load, prediction, source)


def plan_lines(plan: TrainingPlan) -> Iterator[str]:
    """The plan for people."""
    memory, load, prediction = plan.memory, plan.load, plan.prediction
    yield f"parameters: {memory.parameters:,}"
    when = _MOMENTS[memory.moment]
    yield f"memory of a rank, estimated: {format_si(memory.peak, 'B')} {when}: {parts_in_words(memory)}"
    if memory.host:
        yield f"memory of the host for each rank, estimated: {format_si(memory.host, 'B')} optimizer states"
    more = f", {format_si(load.executed, 'FLOP')} with recomputation" if load.executed > load.flops else ""
    yield f"work of a rank and step: {format_si(load.flops, 'FLOP')}{more}"
    if isinstance(prediction, str):
        yield f"step: not predicted: {prediction}"
    else:
        parts = ", ".join(f"{name} {format_si(seconds, 's')}" for name, seconds in prediction.parts.items() if seconds)
        yield (
            f"step: {format_si(prediction.low, 's')} to {format_si(prediction.high, 's')}, "
            f"{prediction.method} ({parts}; {plan.source})"
        )


def flops_per_token(options: TrainingOptions) -> float:
    """Model FLOPs per token, for sequences without padding."""
    from assay.training import flops  # a module of formulas, without torch

    trainee = Trainee(options)
    shape, length = trainee.shape, trainee.length
    if isinstance(shape, EncoderShape):
        return flops.encoder_flops_per_token(shape, length, trainee.predicted)
    if trainee.adapted:
        frozen, adapter = trainee.model.elements(), trainee.learning.elements()
        return flops.adapted_flops_per_token(shape, frozen, adapter, length, trainee.targets)
    return flops.flops_per_token(shape, trainee.parameters, length)


def kept_ceilings(options: TrainingOptions, world: int, env: Mapping[str, str]) -> tuple[StepCeilings | None, str]:
    """The newest kept ceilings of this machine for these options, and where they are from; None if there are none."""
    folder = cache_folder(env)
    found = [_ceilings_in(path, options, world) for path in folder.glob(f"*/{ENTRY}")] if folder else []
    known = [one for one in found if one is not None]
    if not known:
        return None, ""
    measured, ceilings, name = max(known, key=lambda one: one[0])
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(measured))
    return ceilings, f"{name}, on this machine at {when}"


def _ceilings_in(entry: Path, options: TrainingOptions, world: int) -> tuple[float, StepCeilings, str] | None:
    # A prediction is no measurement: other sources or versions of today do not make the ceilings of yesterday useless.
    try:
        document = read_document(entry)
    except BadInput:
        return None
    if not _is_of_here(document.get("identity"), options, world):
        return None
    from assay.record import read_rank_file
    from assay.scoring.ceilings import derive
    from assay.scoring.prediction import step_ceilings

    try:
        figures = derive([read_rank_file(path) for path in sorted(entry.parent.glob("rank-*.jsonl"))])
        measured = float(document["measured"])
    except (OSError, ValueError, KeyError, TypeError):  # of another version, or being replaced at this moment
        return None
    device = next((str(figure.tags.get("device")) for figure in figures), None)  # one rank, one device
    ceilings, name = step_ceilings(figures, options, world, device, {})
    return (measured, ceilings, name) if ceilings.products and ceilings.copies else None


def _is_of_here(identity: Any, options: TrainingOptions, world: int) -> bool:
    if not isinstance(identity, dict) or not all(isinstance(identity.get(key), dict) for key in ("case", "host")):
        return False
    case, host, about = identity["case"], identity["host"], machine.host()
    here = all(host.get(key) == about[key] for key in ("name", "cpu"))
    given = case.get("options")
    device = given.get("device") if isinstance(given, dict) else None
    same = case.get("script") == LIMITS_SCRIPT and case.get("world") == world and device == options.device
    return here and same and identity.get("accelerators") == machine.accelerators()


def misfits(suite: Suite, device_memory: int | None) -> list[str]:
    """A sentence for every training that cannot fit: what it needs, what there is, and what each change would save.

    device_memory: B that a rank may have. None: known only where all ranks are on this host's CPU.
    """
    found = []
    for case in suite.cases:
        if not isinstance(case.options, TrainingOptions):
            continue
        available, where = device_memory, "a device has"
        estimate = estimate_memory(case.options, case.world)
        need = estimate.peak
        if available is None and is_on_this_cpu(case, suite.file):
            available, where = machine.memory_left()[1] // case.world, "this host has for each rank"
            need += estimate.host
        if available is not None and need > available:
            found.append(_refusal(case, case.options, estimate, need, available, where))
    return found


def refuse_what_cannot_run(suite: Suite) -> None:
    """Raise BadInput for trainings that no host like this can hold, whatever an estimate may be off.

    Only what is certain counts: ranks on this host's CPU, their tensors, and what passes keep, against all its memory.
    """
    found = []
    for case in suite.cases:
        if isinstance(case.options, TrainingOptions) and is_on_this_cpu(case, suite.file):
            estimate = estimate_memory(case.options, case.world)
            available = machine.memory_left()[1] // case.world
            if estimate.least + estimate.host > available:
                need = estimate.peak + estimate.host
                found.append(_refusal(case, case.options, estimate, need, available, "this host has for each rank"))
    if found:
        raise BadInput("\n".join(found))


def is_on_this_cpu(case: Case, file: SuiteFile) -> bool:
    """Whether it is known, without asking torch, that all ranks of the case share this host's memory."""
    cpu = case.options.device == "cpu" or (case.options.device == "auto" and not machine.accelerators())
    return cpu and file.launcher == "local" and layout_of(case, file).nodes == 1


def _refusal(
    case: Case, options: TrainingOptions, estimate: MemoryEstimate, need: int, available: int, where: str
) -> str:
    return (
        f"case {case.name!r}: a rank needs {format_si(need, 'B')} by the estimate ({parts_in_words(estimate)}), and "
        f"{where} {format_si(available, 'B')}; {changes_in_words(options, case.world, available)}"
    )


def print_plan(case: Case) -> None:
    """The plan of a training under its command; nothing for other cases."""
    plan = plan_training(case, os.environ)
    for line in plan_lines(plan) if plan else ():
        print(f"    {line}")
