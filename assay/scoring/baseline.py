"""Baselines (figures and loss curves to score against), and how they and profiles are read: YAML data, checked strictly."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator

from assay.errors import BadInput
from assay.options.base import nearest, problems
from assay.scoring.profile_format import Data, Profile
from assay.scoring.result import CaseResult, Figure, RunResult
from assay.scoring.samples import SETTINGS, settings
from assay.scoring.specifications import PARAMETERS, parameter_rows

# Tags that make two figures the same measurement. Others (backend, device) are what is being compared.
MATCHED = (
    *("op", "bytes", "world", "dtype", "model", "engine", "data"),
    *SETTINGS,
)
# Of these, what a machine may choose for itself: whoever trains the same in another way is held against it.
FREE = ("engine", "micro_batch")
# Tags of a collective that is done in another way than usual: it is compared with its like only, never with the plain one.
VARIANTS = ("redop", "groups", "asynchronous", "coalesced", "graph", "matrix")
PLACED = ("placement", "buffers")  # where the data lie: told apart by a baseline that tells them apart
RECORDED = ("throughput_deepspeed", "tgs")  # figures that a profile can score
# What makes two losses of one step comparable. Whether data and settings are alike is asked beside these.
ALIKE = (
    *("script", "model", "weights", "seed", "lr", "min_lr_ratio", "lr_warmup_steps", "schedule", "beta2"),
    *("weight_decay", "clip", "lora_alpha", *(key for key in SETTINGS if key not in ("micro_batch", "int8"))),
)
CURVE_STEPS = 10_000  # of a loss curve that are kept: more would take long to read, and function tests end before


class BaselineFigure(Data):
    """One figure of a baseline, in base units. low, high: its interval where the source gives one."""

    metric: str
    unit: str
    value: float = Field(gt=0)
    low: float | None = None
    high: float | None = None
    duration: float | None = None
    printed_count: int | None = None
    match: dict[str, str | int | float | bool | None]


class BaselineCurve(Data):
    """The loss of every step of a training, from `first_step` on: what the variance of another run's loss is taken against."""

    metric: Literal["loss"]
    first_step: int = Field(ge=0)
    samples: list[float] = Field(min_length=2)
    match: dict[str, str | int | float | bool | None]


class Baseline(Data):
    """Figures of one machine with their source. specifications: basic technical parameters, shown beside and not scored.

    curves: loss curves of its trainings.
    """

    schema_: Literal["assay-baseline/1"] = Field(alias="schema")
    name: str
    title: str
    source: str
    figures: list[BaselineFigure]
    curves: list[BaselineCurve] = Field(default_factory=list)
    specifications: dict[str, float] = Field(default_factory=dict)

    @field_validator("specifications")
    @classmethod
    def _known(cls, given: dict[str, float]) -> dict[str, float]:
        known = [parameter.key for parameter in PARAMETERS]
        for key, value in given.items():
            if key not in known:
                raise ValueError(f"unknown parameter {key!r}{nearest(key, known)}")
            if not 0 < value < float("inf"):
                raise ValueError(f"{key}: expected a number above 0, got {value!r}")
        return given


D = TypeVar("D", Baseline, Profile)
Steps = NDArray[np.int64]
Losses = NDArray[np.float64]


def load_profile(name: str) -> Profile:
    """A profile by name (shipped) or path. Raises BadInput, with the nearest name, if there is none or it is malformed."""
    return _load(name, "profiles", Profile)


def load_baseline(name: str) -> Baseline:
    """A baseline by name (shipped) or path. Raises BadInput, with the nearest name, if there is none or it is malformed."""
    return _load(name, "baselines", Baseline)


def shipped(kind: Literal["profiles", "baselines"]) -> list[str]:
    """Names of what comes with the suite."""
    folder = resources.files("assay.scoring").joinpath(kind)
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _load(name: str, kind: Literal["profiles", "baselines"], model: type[D]) -> D:
    if name in shipped(kind):
        source, text = (
            f"{name}.yaml",
            resources.files("assay.scoring").joinpath(kind).joinpath(f"{name}.yaml").read_text("utf-8"),
        )
    elif Path(name).is_file():
        source, text = name, Path(name).read_text("utf-8", "replace")
    else:
        raise BadInput(f"{kind[:-1]} {name!r}: no such file or shipped {kind[:-1]}{nearest(name, shipped(kind))}")
    try:
        data = yaml.safe_load(text)
        return model.model_validate(data if isinstance(data, dict) else {})
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise BadInput(f"{source}{line}: is no valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{source}: is no valid YAML: {error}") from None
    except ValidationError as error:
        said = "\n".join(f"{source}: {'.'.join(map(str, path))}: {text}" for path, text in problems(error, model))
        raise BadInput(said) from None


def record_baseline(result: RunResult, name: str) -> dict[str, Any]:
    """A baseline document: every figure of `result` that a profile can score, and the loss curves of its trainings.

    What was measured twice (by two cases, or over two transports) counts as it was measured first, as in a score. Raises
    BadInput if there is nothing to record.
    """
    figures: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    passed = [case for case in result.cases if case.status is not None and case.status.state == "passed"]
    for case in passed:
        for figure in case.figures:
            if figure.metric in RECORDED and figure.estimate is not None:
                match = _match_of(case, figure)
                if any(known["metric"] == figure.metric and known["match"] == match for known in figures):
                    continue
                item: dict[str, Any] = {"metric": figure.metric, "unit": figure.unit, "value": figure.estimate.value}
                if figure.estimate.low is not None:
                    item |= {"low": figure.estimate.low, "high": figure.estimate.high}
                figures.append({**item, "match": match})
                curves += _loss_curve(case, {**match, **curve_tags(case, figure)}) if figure.metric == "tgs" else []
    specifications = {
        row.parameter.key: row.figure.value for row in parameter_rows(passed, {}, {}) if row.figure and row.figure.value
    }
    if not figures and not specifications:
        raise BadInput(f"{result.path}: has no passed case with a figure that can be scored; finish the run first")
    host = result.document.get("host", {})
    return {
        "schema": "assay-baseline/1",
        "name": name,
        "title": f"{host.get('cpu') or 'unknown'}, {result.document.get('suite', {}).get('name', 'run')}",
        "source": f"assay run of {result.document.get('created', 'unknown date')}",
        "figures": figures,
        "curves": curves,
        "specifications": specifications,
    }


def _match_of(case: CaseResult, figure: Figure) -> dict[str, Any]:
    # One model may be pretrained and fine-tuned in a run: which script it was tells the two apart.
    script = {"script": case.script} if figure.metric == "tgs" else {}
    return {**matched(figure.tags), **script, **case.labels}


def loss_of(case: CaseResult) -> tuple[Steps, Losses]:
    """The steps of a training in order, warm-up first, and the loss of each; both empty where none was recorded."""
    found = [curve for curve in case.curves if curve.metric == "loss" and curve.steps is not None]
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    steps = np.concatenate([curve.steps for curve in found if curve.steps is not None])
    order = np.argsort(steps, kind="stable")
    return steps[order], np.concatenate([curve.samples for curve in found])[order]


def _loss_curve(case: CaseResult, match: Mapping[str, Any]) -> list[dict[str, Any]]:
    steps, losses = loss_of(case)
    whole = steps.size > 1 and bool((np.diff(steps) == 1).all() and np.isfinite(losses).all())
    if not whole:
        return []
    kept = [float(value) for value in losses[:CURVE_STEPS]]
    return [{"metric": "loss", "first_step": int(steps[0]), "samples": kept, "match": dict(match)}]


def curve_tags(case: CaseResult, figure: Figure | None) -> dict[str, Any]:
    """What a case's loss is compared by: ALIKE, of its options and of the tags of its steps."""
    known = {**case.options, **(figure.tags if figure else settings(case.options)), "script": case.script}
    known["weights"] = "generated" if known.get("weights") in (None, "generated") else "pretrained"
    if known.get("method") != "lora":
        known.pop("lora_alpha", None)
    chosen = {**settings(known), **{key: value for key, value in known.items() if key not in SETTINGS}}
    return {key: chosen[key] for key in ALIKE if chosen.get(key) is not None}


def same_data(one: object, other: object) -> bool:
    """Whether two names of data are of the same: another machine keeps the same file in another folder."""
    return one == other or (PurePath(str(one)).suffix != "" and PurePath(str(one)).name == PurePath(str(other)).name)


def matched(tags: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a figure's tags by which it is found again."""
    return {key: tags[key] for key in (*MATCHED, *VARIANTS, *PLACED) if key in tags}
