"""The communication chapter: every collective as a sweep over message sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.report.arrival import late_part, split_chart
from assay.report.cells import Cell, Chapter, Column, Part, Table, figure_cell, metric_label, ranks
from assay.report.charts import Axis, LineChart
from assay.report.quantities import percent, size
from assay.report.sizes import figure_line
from assay.scoring.result import Figure, RunResult

_LINES = 6  # in one chart; more could not be told apart
_COLUMNS = (
    "call_time_p50",
    "call_time_p50_random_order",
    "call_time_p95",
    "call_time_p99",
    "device_time_p50",
    "waiting_time",
    "batch_call_time",
    "algbw",
    "busbw",
    "throughput_deepspeed",
    "check_errors",
)


@dataclass(frozen=True)
class Sweep:
    """One collective of one case at one setting. points: bytes → metric → figure, in order of size."""

    op: str
    case: str
    tags: Mapping[str, Any]
    points: dict[int, dict[str, Figure]] = field(default_factory=dict)

    def best(self, metric: str = "busbw") -> tuple[int, Figure] | None:
        """The size with the highest value of `metric`, and that figure; None where it is unknown at every size."""
        known = [
            (count, figure)
            for count, figures in self.points.items()
            if (figure := figures.get(metric)) and figure.value is not None and math.isfinite(figure.value)
        ]
        return max(known, key=lambda item: item[1].value or 0.0, default=None)


def is_of_sweep(figure: Figure) -> bool:
    """Whether the figure belongs to a collective at a message size."""
    count = figure.tags.get("bytes")
    of_op = isinstance(figure.tags.get("op"), str) and "gemm" not in figure.tags  # beside products: another measurement
    return of_op and isinstance(count, int) and not isinstance(count, bool)


def sweeps(result: RunResult) -> list[Sweep]:
    """All sweeps of a run, in the order in which they were measured."""
    found: dict[tuple[str, str, str], Sweep] = {}
    for case in result.cases:
        for figure in filter(is_of_sweep, case.figures):
            tags = {key: value for key, value in figure.tags.items() if key not in ("op", "bytes")}
            tags.setdefault("world", case.world)
            op = str(figure.tags["op"])
            sweep = found.setdefault((case.name, op, repr(sorted(tags.items()))), Sweep(op, case.name, tags))
            sweep.points.setdefault(int(figure.tags["bytes"]), {})[figure.metric] = figure
    for sweep in found.values():
        ordered = sorted(sweep.points.items())
        sweep.points.clear()
        sweep.points.update(ordered)
    return list(found.values())


def setting(sweep: Sweep) -> str:
    """Everything that was set for a sweep, in words: `8 ranks, gloo, float32`."""
    rest = {key: value for key, value in sweep.tags.items() if key not in ("world", "backend", "dtype")}
    known = [ranks(sweep.tags["world"]), sweep.tags.get("backend"), sweep.tags.get("dtype")]
    return ", ".join(str(word) for word in [*known, *(f"{key} {value}" for key, value in rest.items())] if word)


def short_labels(group: Sequence[Sweep]) -> list[str]:
    """What tells the sweeps of one collective apart, in as few words as do."""
    keys = ["world", "backend", "dtype", *sorted({key for sweep in group for key in sweep.tags})]
    parts: list[list[str]] = [[] for _ in group]
    for key in dict.fromkeys(keys):
        values = [sweep.tags.get(key) for sweep in group]
        if len({str(value) for value in values}) > 1 and len({tuple(words) for words in parts}) < len(group):
            for words, value in zip(parts, values, strict=True):
                words.append(ranks(value) if key == "world" else str(value))
    if len({tuple(words) for words in parts}) < len(group):
        for words, sweep in zip(parts, group, strict=True):
            words.append(sweep.case)
    return [", ".join(words) for words in parts]


def communication_chapter(result: RunResult) -> Chapter:
    """Charts of busbw over size for every collective, side by side, then each collective's tables."""
    groups: dict[str, list[Sweep]] = {}
    for sweep in sweeps(result):
        groups.setdefault(sweep.op, []).append(sweep)
    if not groups:
        return Chapter("communication", "Communication", "No case of this run measured a collective.")
    drawn = {op: [sweep for sweep in group if sweep.best()] for op, group in groups.items()}
    charts = [chart for op, group in drawn.items() if group for chart in _charts(op, group)]
    tardy = {case.name for case in result.cases if case.late}
    split = [
        chart
        for group in groups.values()
        for sweep in group
        if sweep.case in tardy and (chart := split_chart(f"{sweep.op}, {setting(sweep)}", sweep.points))
    ]
    lead = (
        "Bus bandwidth (busbw) over message size. †: doubted, see Doubts. Whiskers are the interval of each point; where none is seen, it is "
        "narrower than the mark. Figures beneath each other in a table are the value and its interval."
    )
    late = late_part([(case.name, case.late) for case in result.cases])
    parts = [
        Part(charts=charts),
        *([late] if late else []),
        *([Part("Waiting and transfer", charts=split)] if split else []),
        *(Part(op, tables=[_table(sweep) for sweep in group]) for op, group in groups.items()),
    ]
    return Chapter("communication", "Communication", lead, parts)


def _charts(op: str, group: Sequence[Sweep]) -> list[LineChart]:
    labels = short_labels(group) if len(group) > 1 else [""]
    charts = []
    for first in range(0, len(group), _LINES):
        chosen = list(zip(group, labels, strict=True))[first : first + _LINES]
        title = f"{op}, {setting(chosen[0][0])}" if len(group) == 1 else op
        lines = [figure_line(label, sweep.points, "busbw") for sweep, label in chosen]
        charts.append(LineChart(title, Axis("message size", "B", log2=True), Axis("busbw", "B/s", zero=True), lines))
    return charts


def _table(sweep: Sweep) -> Table:
    present = {metric for figures in sweep.points.values() for metric in figures}
    metrics = [metric for metric in _COLUMNS if metric in present] + sorted(present - set(_COLUMNS))
    shared = [figures["busbw"] for figures in sweep.points.values() if "busbw" in figures]
    ceilings = sorted({figure.share_of for figure in shared if figure.share_of})
    columns = [Column("Size", numeric=True), *(Column(metric_label(metric), numeric=True) for metric in metrics)]
    caption = f"{sweep.op}, {setting(sweep)} (case {sweep.case})"
    if ceilings:
        columns.append(Column("busbw of ceiling", numeric=True))
        caption += f"; ceiling: {', '.join(ceilings)}"
    rows = []
    for count, figures in sweep.points.items():
        row = [Cell(size(count)), *(figure_cell(figures.get(metric)) for metric in metrics)]
        if ceilings:
            busbw = figures.get("busbw")
            row.append(Cell(percent(busbw.share)) if busbw else Cell("NA", "", "quiet"))
        rows.append(row)
    return Table(caption, columns, rows, captioned=True)
