"""Latency and bandwidth models of the sweeps: a table, and charts of what was measured against what they predict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from assay.latency_model import LatencyModel
from assay.report.axes import Axis
from assay.report.cells import Cell, Column, Part, Table, figure_cell, share_cell
from assay.report.charts import LineChart, Series
from assay.report.communication import Sweep, setting
from assay.report.quantities import quantity, size
from assay.scoring.latency import SweepModel, latency_figures, sweep_models
from assay.scoring.result import RunResult

_TITLE = "Latency and bandwidth model"
_LEAD = (
    "t(S) = α + S·f/B (Hockney's model), fitted in relative error to the times per call, back to back: α is what a call "
    "costs however small it is, B the bus bandwidth that it comes to however large, n½ = α·B/f the size at which it "
    "reaches half of B. f is the busbw factor, which assumes a flat ring: with trees or in-network reduction, B can exceed "
    "the rate of a link. A residual is measured / predicted − 1. Where two lines fit decidedly better than one, the "
    "implementation seems to change its protocol or algorithm: α is then of the smaller sizes, B of the larger ones, and "
    "the size from which the second holds is named."
)


@dataclass(frozen=True)
class _Fitted:
    case: str
    sweep: SweepModel

    @property
    def setting(self) -> str:
        tags = {key: value for key, value in self.sweep.tags.items() if key != "op"}
        return setting(Sweep(self.sweep.op, self.case, tags))


def latency_parts(result: RunResult) -> list[Part]:
    """One part with a row for every sweep of every case, and a chart for every sweep that has a model; none without sweeps."""
    fitted = [_Fitted(case.name, sweep) for case in result.cases for sweep in sweep_models(case.figures)]
    if not fitted:
        return []
    charts = [_chart(item, item.sweep.model) for item in fitted if item.sweep.model]
    return [Part(_TITLE, _LEAD, charts, [_table(fitted), *_residuals(fitted)])]


def _table(fitted: Sequence[_Fitted]) -> Table:
    shared = any(item.sweep.busbw for item in fitted)
    names = (
        "Latency α",
        "Bandwidth B",
        *(["B of ceiling"] if shared else []),
        "n½",
        "Second line from",
        "Worst residual",
    )
    columns = [Column("Sweep"), *(Column(name, numeric=True) for name in names)]
    rows = []
    for item in fitted:
        alpha, bandwidth = latency_figures([item.sweep])
        model = item.sweep.model
        shares = [share_cell(bandwidth)] if shared else []
        rest = [_half(model), _switch(model), _worst(model)] if model else [_NOTHING] * 3
        rows.append([_name(item), figure_cell(alpha), figure_cell(bandwidth), *shares, *rest])
    return Table(_TITLE, columns, rows)


_NOTHING = Cell("–", "", "quiet")


def _half(model: LatencyModel) -> Cell:
    if model.half_size is None:
        return _NOTHING
    count = round(model.half_size)
    if count > model.sizes[-1]:
        return Cell(quantity(count, "B"), "beyond the sweep")
    return Cell(quantity(count, "B"), "below the sweep" if count < model.sizes[0] else "")


def _switch(model: LatencyModel) -> Cell:
    return _NOTHING if model.switch_at is None else Cell(size(model.switch_at))


def _worst(model: LatencyModel) -> Cell:
    count, residual = model.worst
    return Cell(_signed(residual), f"at {size(count)}")


def _residuals(fitted: Sequence[_Fitted]) -> list[Table]:
    """Residuals of every size; one table for the sweeps over the same sizes."""
    groups: dict[tuple[int, ...], list[list[Cell]]] = {}
    for item in fitted:
        if item.sweep.model:
            cells = [Cell(_signed(residual)) for residual in item.sweep.model.residuals]
            groups.setdefault(item.sweep.model.sizes, []).append([_name(item), *cells])
    caption = "Residuals: measured / predicted − 1"
    return [
        Table(caption, [Column("Sweep"), *(Column(size(count), numeric=True) for count in sizes)], rows, captioned=True)
        for sizes, rows in groups.items()
    ]


def _name(item: _Fitted) -> Cell:
    return Cell(item.sweep.op, f"{item.setting} (case {item.case})")


def _signed(residual: float) -> str:
    return f"{'−' if residual < 0 else '+'}{abs(residual) * 100:,.1f} %"


def _chart(item: _Fitted, model: LatencyModel) -> LineChart:
    points = item.sweep.points
    measured = Series(
        "measured",
        [float(point.size) for point in points],
        [point.seconds for point in points],
        [math.nan if point.low is None else point.low for point in points],
        [math.nan if point.high is None else point.high for point in points],
    )
    predicted = Series("predicted", [float(count) for count in model.sizes], list(model.predicted))
    title = f"{item.sweep.op}, {item.setting}: time per call"
    x, y = Axis("message size", "B", log2=True), Axis("time per call", "s", log10=True)
    return LineChart(title, x, y, [predicted, measured])  # what is drawn last lies on top
