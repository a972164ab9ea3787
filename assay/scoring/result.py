"""What is known about a run once it is read: the data that scores, reports and the terminal share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from assay.arrival import Lateness
from assay.estimates import Estimate
from assay.links.survey import Survey
from assay.roofline import Roofline
from assay.rundir import Status


@dataclass(frozen=True)
class Figure:
    """One derived number of one case, in base units, with its interval and its method.

    metric: busbw, algbw, throughput_deepspeed (bit/s), call_time_p50 …, tgs, mfu, step_time_p50, final_loss, ppl …
    estimate: None when unknown; `reason` then says why.
    share: value / ceiling, where a ceiling applies; `share_of` names the ceiling. least_share: value / upper end of the
    ceiling's interval.
    """

    metric: str
    unit: str
    estimate: Estimate | None
    tags: Mapping[str, Any]
    better: Literal["higher", "lower"] | None = None
    share: float | None = None
    share_of: str | None = None
    least_share: float | None = None
    reason: str | None = None
    doubts: tuple[str, ...] = ()
    """Kinds of doubt about this figure, out of assay/scoring/doubts.py."""

    @property
    def value(self) -> float | None:
        """The number, or None when unknown."""
        return self.estimate.value if self.estimate else None


@dataclass(frozen=True)
class Curve:
    """Raw samples for a chart. `steps`: where each sample lies, None where samples are only a distribution.

    over: what `steps` counts: training steps, or whole seconds since the first sample began.
    """

    metric: str
    unit: str
    samples: NDArray[np.float64]
    steps: NDArray[np.int64] | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    over: Literal["step", "s"] = "step"


@dataclass(frozen=True)
class Doubt:
    """A reason to distrust a figure, out of the closed list in assay/scoring/doubts.py, with what to do about it."""

    kind: str
    case: str
    subject: str
    message: str
    advice: str


@dataclass(frozen=True)
class CaseResult:
    """One case: how it ended and what it measured. status None: it has not ended (or its runner was killed)."""

    name: str
    script: str
    world: int
    options: Mapping[str, Any]
    status: Status | None
    attempts: int
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    about: Mapping[str, Any] = field(default_factory=dict)
    """Of rank 0's header: device, device_name, backend, torch, threads; hosts (count), bytes logged."""
    late: Sequence[Lateness] = ()
    """Ranks that came late to collectives, one for each op and size that has one."""
    survey: Survey | None = None
    """Of comms/links.py: every pair's times, and which rank or link is slow."""
    sensed: list[Figure] = field(default_factory=list)
    """What the sensors beside the ranks tell of each device: power, temperature, clocks, throttling, risen counters."""


@dataclass(frozen=True)
class Row:
    """One line of a score's table. score None prints NA and counts 0; 0.0 is a test that failed."""

    label: str
    weight: float
    measured: float | None
    baseline: float | None
    unit: str
    ratio: float | None
    score: float | None
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One scored part (communication, training performance, …). score None: nothing of it was submitted."""

    key: str
    title: str
    formula: str
    rows: list[Row]
    score: float | None
    note: str = ""


@dataclass(frozen=True)
class Scorecard:
    """All sections against one baseline under one profile."""

    profile: str
    baseline: str
    baseline_source: str
    sections: list[Section]


@dataclass(frozen=True)
class Parameter:
    """A row of the table. metric, match: the figure that is its measurement; the highest where several match, or the
    lowest if `slowest`.

    key: its name in baselines. datasheet: its names in datasheets, the first that is printed counts. unit: base unit.
    """

    key: str
    title: str
    unit: str
    metric: str
    match: Mapping[str, Any] = field(default_factory=dict)
    datasheet: tuple[str, ...] = ()
    slowest: bool = False


@dataclass(frozen=True)
class ParameterRow:
    """One parameter as a reader sees it. figure: None if no case measured it. Values in base units."""

    parameter: Parameter
    figure: Figure | None
    baseline: float | None
    datasheet: float | None


@dataclass(frozen=True)
class RunResult:
    """A whole run as read: `document` is run.json."""

    path: str
    document: Mapping[str, Any]
    cases: list[CaseResult]
    ceilings: list[Figure]
    doubts: list[Doubt]
    scorecard: Scorecard | None = None
    checkups: Sequence[Mapping[str, Any]] = ()
    """What the doctor found before the run and before each resumption, as assay/doctor wrote it."""
    rooflines: Sequence[Roofline] = ()
    parameters: Sequence[ParameterRow] = ()
    datasheet: str | None = None
    """Which product's printed peaks stand in `parameters`, and where they are printed."""
