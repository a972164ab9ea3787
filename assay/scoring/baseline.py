"""Profiles (formulas and weights) and baselines (figures to score against): YAML data, checked strictly."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from assay.errors import BadInput
from assay.options.base import nearest, problems
from assay.scoring.result import RunResult
from assay.scoring.specifications import PARAMETERS, parameter_rows

# Tags that make two figures the same measurement. Others (backend, device) are what is being compared.
MATCHED = ("op", "bytes", "world", "dtype", "model", "engine", "data", "seq_len", "global_batch", "micro_batch")
# Tags of a collective that is done in another way than usual: it is compared with its like only, never with the plain one.
VARIANTS = ("redop", "groups", "asynchronous", "coalesced", "graph", "matrix")
PLACED = ("placement", "buffers")  # where the data lie: told apart by a baseline that tells them apart
RECORDED = ("throughput_deepspeed", "tgs")  # figures that a profile can score


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaselineFigure(_Data):
    """One figure of a baseline, in base units. low, high: its interval where the source gives one."""

    metric: str
    unit: str
    value: float = Field(gt=0)
    low: float | None = None
    high: float | None = None
    duration: float | None = None
    printed_count: int | None = None
    match: dict[str, str | int | float | bool | None]


class Baseline(_Data):
    """Figures of one machine with their source. specifications: basic technical parameters, shown beside and not scored."""

    schema_: Literal["assay-baseline/1"] = Field(alias="schema")
    name: str
    title: str
    source: str
    figures: list[BaselineFigure]
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


class ProfileRow(_Data):
    """One row of a section: how much it weighs and what measurement it wants."""

    weight: float = Field(gt=0)
    match: dict[str, str | int | float | bool | None]


class ProfileSection(_Data):
    """One scored part. rows: "baseline" takes every figure of the baseline with the section's metric, equally weighted."""

    key: str
    title: str
    metric: Literal["throughput_deepspeed", "tgs"]
    rows: list[ProfileRow] | Literal["baseline"]


class Profile(_Data):
    """Which figures make which score. baseline: the one used when none is named."""

    schema_: Literal["assay-profile/1"] = Field(alias="schema")
    name: str
    title: str
    source: str
    baseline: str | None
    sections: list[ProfileSection]


D = TypeVar("D", Baseline, Profile)


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
    """A baseline document of every figure of `result` that a profile can score. Raises BadInput if there is none.

    What was measured twice (by two cases, or over two transports) counts as it was measured first, as in a score.
    """
    figures: list[dict[str, Any]] = []
    for case in result.cases:
        if case.status is None or case.status.state != "passed":
            continue
        for figure in case.figures:
            if figure.metric in RECORDED and figure.estimate is not None:
                match = matched(figure.tags)
                if any(known["metric"] == figure.metric and known["match"] == match for known in figures):
                    continue
                item: dict[str, Any] = {"metric": figure.metric, "unit": figure.unit, "value": figure.estimate.value}
                if figure.estimate.low is not None:
                    item |= {"low": figure.estimate.low, "high": figure.estimate.high}
                figures.append({**item, "match": match})
    passed = [case for case in result.cases if case.status is not None and case.status.state == "passed"]
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
        "specifications": specifications,
    }


def matched(tags: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a figure's tags by which it is found again."""
    return {key: tags[key] for key in (*MATCHED, *VARIANTS, *PLACED) if key in tags}
