"""The table of what trainings were predicted to need beside what they needed."""

from collections.abc import Sequence

from assay.report.cells import Cell, Column, Part, Table, figure_cell
from assay.report.quantities import percent
from assay.scoring.prediction import MEASURED, MEMORY
from assay.scoring.result import CaseResult, Figure

_LEAD = (
    "Predicted from shapes and options, and for times from the ceilings and collectives measured in this run; sequences "
    "count with their greatest length, and attention with all pairs of tokens, masked or not. A step's range goes from all "
    "communication and memory traffic hidden to nothing hidden; what lies above is neither products nor bytes: input, the "
    "starting of kernels, late ranks."
)
_ON_A_CPU = (
    " On a CPU the measured peak is the process's resident set: it holds the interpreter and torch too, some hundred "
    "megabytes that no prediction counts, and its set-up."
)
_NAMES = {"peak_memory": "peak memory of a rank", "step_time_p50": "step time"}


def prediction_part(cases: Sequence[CaseResult]) -> Part | None:
    """A row for each prediction of each case; None where nothing was predicted."""
    rows, on_cpu = [], False
    for case in cases:
        for predicted in (figure for figure in case.figures if figure.metric in MEASURED):
            measured = next((one for one in case.figures if one.metric == MEASURED[predicted.metric]), None)
            rows.append(_row(case, predicted, measured))
            on_cpu |= predicted.metric == MEMORY and case.about.get("device") == "cpu"
    if not rows:
        return None
    columns = [
        Column("Case"),
        Column("Predicted", numeric=True),
        Column("Measured", numeric=True),
        Column("Measured / predicted", numeric=True),
        Column("How it is predicted"),
    ]
    table = Table("Predicted against measured", columns, rows)
    return Part("Predicted against measured", _LEAD + (_ON_A_CPU if on_cpu else ""), tables=[table])


def _row(case: CaseResult, predicted: Figure, measured: Figure | None) -> list[Cell]:
    method = Cell(predicted.estimate.method) if predicted.estimate else Cell("–", "", "quiet")
    name = Cell(case.name, _NAMES[MEASURED[predicted.metric]])
    return [name, figure_cell(predicted), figure_cell(measured), _ratio(case, predicted, measured), method]


def _ratio(case: CaseResult, predicted: Figure, measured: Figure | None) -> Cell:
    """Measured over predicted; of a range, where the measured lies."""
    if not predicted.estimate or not predicted.value or measured is None or measured.value is None:
        return Cell("–", "", "quiet")
    if predicted.metric == MEMORY and case.about.get("device") == "cpu":
        return Cell("–", "not comparable: resident set of the process", "quiet")
    low, high = predicted.estimate.low, predicted.estimate.high
    share = percent(measured.value / predicted.value)
    if low is None or high is None:
        return Cell(share)
    if measured.value < low:
        return Cell(share, f"{measured.value / low:.2f} × the lower end")
    return Cell(share, "within the range" if measured.value <= high else f"{measured.value / high:.2f} × the upper end")
