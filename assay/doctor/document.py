"""A checkup out of its JSON document. Strict: a verdict that its findings do not bear out is no document of ours."""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from assay.doctor.checkup import SCHEMA, Checkup, Verdict
from assay.doctor.finding import Finding, State
from assay.doctor.noise import PAIRS, WHOLE, WORKS, Noise, whole_case
from assay.errors import BadInput
from assay.options.base import Options, problems


def _iso(text: str) -> str:
    try:
        datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        raise ValueError(f"expected a time such as 2026-01-31T12:00:00+0100, got {text!r}") from None
    return text


# Seconds that a clock can tell apart and that somebody can have waited for.
_Seconds = Annotated[float, Field(ge=1e-9, le=1e9)]
_Pair = Annotated[list[_Seconds], Field(min_length=2, max_length=2)]


class _Strict(Options):
    model_config = ConfigDict(strict=True)


class _Finding(_Strict):
    check: str = Field(min_length=1)
    state: State
    found: str
    advice: str


class _Noise(_Strict):
    work: str
    pairs: list[_Pair] = Field(min_length=PAIRS, max_length=PAIRS)
    ratios: list[float]
    noise: float
    drift: Literal["slower", "faster"] | None
    confidence: float


class _Checkup(_Strict):
    schema_: Literal["assay-checkup/1"] = Field(alias="schema")
    when: Annotated[str, AfterValidator(_iso)]
    seconds: float = Field(ge=0)
    device: str | None
    verdict: Verdict
    sentence: str
    noise: list[_Noise]
    findings: list[_Finding]


def from_document(document: Mapping[str, Any], source: str = "checkup") -> Checkup:
    """The checkup that `Checkup.document` wrote. Raises BadInput, one sentence a problem, for anything else.

    source: the file it came from, for the sentence.
    """
    if document.get("schema") != SCHEMA:
        raise BadInput(f"{source}: schema {document.get('schema')!r}, expected {SCHEMA!r}; make it with assay doctor")
    try:
        read = _Checkup.model_validate(dict(document))
    except ValidationError as error:
        said = problems(error, _Checkup)
        raise BadInput("\n".join(f"{source}: {'.'.join(map(str, path))}: {text}" for path, text in said)) from None
    noises = tuple(Noise(item.work, tuple((a, b) for a, b in item.pairs)) for item in read.noise)
    findings = tuple(Finding(item.check, item.state, item.found, item.advice) for item in read.findings)
    checkup = Checkup(findings, noises, read.device, read.seconds, read.when)
    wrong = next(_contradictions(read, checkup), None)
    if wrong:
        raise BadInput(f"{source}: {wrong}; restore the file or make it anew with assay doctor")
    return checkup


def _contradictions(read: _Checkup, checkup: Checkup) -> Iterator[str]:
    noises = checkup.noises
    if noises and [noise.work for noise in noises] != [*WORKS, WHOLE]:
        yield f"noise is not that of {', '.join([*WORKS, WHOLE])}"
    elif noises and not _same(whole_case(noises[:-1]), noises[-1]):
        yield f"the times of the {WHOLE} are not the sums of its kinds of work"
    for noise, told in zip(noises, read.noise, strict=True):
        if not math.isclose(noise.value, told.noise, rel_tol=1e-9, abs_tol=1e-12) or noise.drift != told.drift:
            yield f"the noise of {noise.work} does not follow from its pairs"
    if checkup.verdict != read.verdict:
        yield f"verdict {read.verdict!r} does not follow from its findings, which say {checkup.verdict!r}"


def _same(one: Noise, other: Noise) -> bool:
    return all(
        math.isclose(a, b, rel_tol=1e-9)
        for left, right in zip(one.pairs, other.pairs, strict=True)
        for a, b in zip(left, right, strict=True)
    )
