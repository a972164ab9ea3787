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
class StepOutlier:
    """A measured step that took far longer than usual. seconds: of its slowest rank.

    ranks: who held the others up, on `hosts`; none where that cannot be told, and `why` says so. A single rank holds
    nobody up: no ranks, and no `why`.
    """

    step: int
    seconds: float
    ranks: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class SlowRank:
    """A rank whose own work in the sampled steps takes longer than all others'.

    excess: s a step beyond the median of the others, mean over the `steps` sampled; share: of such a step. phase: where
    most of it lies.
    """

    rank: int
    host: str
    excess: float
    share: float
    phase: str
    steps: int


@dataclass(frozen=True)
class StepStudy:
    """Where the time of a training step goes, and which steps and ranks were slow.

    phases: name → median over ranks and sampled steps (s), none without sampled steps. by_rank: rank → phase → median (s).
    usual: median of the measured steps, as measured (s). limit: what a step must exceed to be an outlier (s), where
    `corrected` after what its tokens explain is taken out. beyond: outliers that are not listed. slow_why: why no slow rank
    could be looked for, where that is so.
    """

    phases: Mapping[str, Estimate]
    by_rank: Mapping[int, Mapping[str, float]]
    slowest: Mapping[str, int]
    """Phase → the rank in which it takes longest."""
    total: Estimate | None
    """Sum of a sampled step's phases, its slowest rank, median over sampled steps (s)."""
    exposed: Estimate | None
    """Communication that arithmetic waited for, which lies inside of the phases (s)."""
    exposed_why: str
    steps: int
    usual: float
    limit: float
    outliers: Sequence[StepOutlier] = ()
    beyond: int = 0
    slow: SlowRank | None = None
    slow_why: str = ""
    corrected: bool = False


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
    steps: StepStudy | None = None
    """Of a training: phases of its steps, outliers, slow ranks."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """What the suite says of the case that no option does, such as which of two networks it ran over."""
    sensed: list[Figure] = field(default_factory=list)
    """What the sensors beside the ranks tell of each device: power, temperature, clocks, throttling, risen counters."""


@dataclass(frozen=True)
class Configuration:
    """One column's part of a row: one configuration of a model, such as one of two networks. As in `Row`.

    share: the measured figure as a share of `share_of`, for a reader who has no baseline. how: in which way it was
    measured, where the row leaves that open.
    """

    title: str
    measured: float | None
    baseline: float | None
    unit: str
    score: float | None
    note: str = ""
    share: float | None = None
    share_of: str | None = None
    how: str = ""


@dataclass(frozen=True)
class Check:
    """One target of a function test. target None: the profile gives none, so `measured` is shown and not judged.

    met None: nothing was judged; `note` says why, or how it was measured.
    """

    name: Literal["loss", "variance", "ppl"]
    target: float | None
    measured: float | None
    met: bool | None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a score's table. score None prints NA and counts 0; 0.0 is a test that failed.

    configurations: where the section has columns, one for each; measured, baseline and ratio are theirs then. checks: of a
    function test. case: which case gave the figures. data: what a function test trained on.
    """

    label: str
    weight: float
    measured: float | None
    baseline: float | None
    unit: str
    ratio: float | None
    score: float | None
    note: str = ""
    configurations: Sequence[Configuration] = ()
    checks: Sequence[Check] = ()
    world: int | None = None
    case: str = ""
    data: str = ""


@dataclass(frozen=True)
class Section:
    """One scored part (communication, training performance, …). score None: nothing of it was submitted."""

    key: str
    title: str
    formula: str
    rows: list[Row]
    score: float | None
    note: str = ""
    metric: str = ""
    chapter: str = ""
    """The report's chapter that shows its table, training or finetuning; empty: the chapter of scores."""
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Scorecard:
    """All sections against one baseline under one profile.

    curves: case → the loss curve of the baseline's like training. deviations: case → loss_variance against that curve.
    """

    profile: str
    baseline: str
    baseline_source: str
    sections: list[Section]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    deviations: Mapping[str, Figure] = field(default_factory=dict)


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
