"""Communication beside computation, for the communication chapter: what hides, and what stays exposed."""

from collections.abc import Sequence
from typing import Any

from assay.report.cells import Cell, Column, Part, Table, figure_cell, metric_label, tag_words
from assay.report.charts import Axis, LineChart
from assay.report.quantities import size
from assay.report.sizes import Points, figure_line
from assay.scoring.overlap import SCRIPT
from assay.scoring.result import Figure, RunResult

_LEAD = (
    "A collective begun, products run, the collective awaited: held against the products alone and the collective alone, "
    "taken by turns. Exposed communication: both − products. Overlap share: (products + collective − both) / the shorter "
    "of the two; 1 hides it whole, 0 is one after the other. Noise goes beyond both ends and is not cut off. What makes "
    "no progress by itself (most of MPI), or only on the cores that the products use (gloo), hides nothing or less."
)
_COLUMNS = (
    "overlap_share",
    "exposed_communication",
    "compute_time",
    "communication_time",
    "both_time",
    "check_errors",
    "late_elements",
)
_OF_SIZE = ("bytes", "gemm", "gemm_dtype", "products")  # differ from size to size
_LABELS = {"compute_time": "products", "communication_time": "collective", "both_time": "both"}


def overlap_part(result: RunResult) -> Part | None:
    """A chart of the overlap share over size, and a table of each case; None where no case measured it."""
    found = [(case.name, *group) for case in result.cases if case.script == SCRIPT for group in _groups(case.figures)]
    if not found:
        return None
    lines = [
        figure_line(f"{tags.get('op')}, {case}" if len(found) > 1 else "", points, "overlap_share")
        for case, tags, points in found
    ]
    # A line of one point tells less than the table.
    lines = [series for series in lines if len(series.x) > 1]
    axes = Axis("message size", "B", log2=True), Axis("overlap share", "1", zero=True)
    charts = [LineChart("Communication that hides behind products", *axes, lines)] if lines else []
    return Part("Overlap with computation", _LEAD, charts=charts, tables=[_table(*one) for one in found])


def _groups(figures: Sequence[Figure]) -> list[tuple[dict[str, Any], Points]]:
    groups: dict[str, tuple[dict[str, Any], dict[int, dict[str, Figure]]]] = {}
    for figure in figures:
        tags = {key: value for key, value in figure.tags.items() if key not in _OF_SIZE}
        _, points = groups.setdefault(repr(sorted(tags.items())), (tags, {}))
        points.setdefault(int(figure.tags["bytes"]), {})[figure.metric] = figure
    return [(tags, dict(sorted(points.items()))) for tags, points in groups.values()]


def _table(case: str, tags: dict[str, Any], points: Points) -> Table:
    present = {metric for figures in points.values() for metric in figures}
    metrics = [metric for metric in _COLUMNS if metric in present]
    columns = [Column(_LABELS.get(metric, metric_label(metric)), numeric=True) for metric in metrics]
    rows = []
    for count, figures in points.items():
        of = next(iter(figures.values())).tags
        products = f"{of.get('products')} × {of.get('gemm')}³ {of.get('gemm_dtype')}"
        rows.append([Cell(size(count), products), *(figure_cell(figures.get(metric)) for metric in metrics)])
    caption = f"{tag_words(tags)} (case {case})"
    return Table(caption, [Column("Size, products", numeric=True), *columns], rows, captioned=True)
