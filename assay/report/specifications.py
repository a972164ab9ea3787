"""The table of basic technical parameters: measured, beside a baseline and what the vendor prints."""

from assay.report.cells import Cell, Chapter, Column, Part, Table, figure_cell
from assay.report.quantities import percent, quantity
from assay.report.text import line
from assay.scoring.result import ParameterRow, RunResult

_LEAD = (
    "Measured in this run. A product was proven right in its own element type before it was timed. Printed peaks are "
    "dense ones. This table is shown and not scored."
)

_NOTHING = Cell("–", "", "quiet")


def specification_chapter(result: RunResult) -> Chapter:
    """The chapter; empty where no case measured the parameters. Columns without a value are left out."""
    rows = result.parameters
    if not rows:
        return Chapter("specifications", "Basic technical parameters")
    held = any(row.baseline is not None for row in rows)
    printed = any(row.datasheet is not None for row in rows)
    columns = [Column("Parameter"), Column("Measured", numeric=True)]
    columns += [Column("Baseline", numeric=True), Column("Of the baseline", numeric=True)] if held else []
    columns += [Column("Datasheet", numeric=True), Column("Of the datasheet", numeric=True)] if printed else []
    lead = _LEAD
    if held and result.scorecard:
        lead += f" Baseline: {line(result.scorecard.baseline, 200)}."
    lead += (
        f" Datasheet: {line(result.datasheet, 600)}" if result.datasheet else " No datasheet of this device is known."
    )
    table = Table("Basic technical parameters", columns, [_row(row, held, printed) for row in rows])
    return Chapter("specifications", "Basic technical parameters", lead, [Part(tables=[table])])


def _row(row: ParameterRow, held: bool, printed: bool) -> list[Cell]:
    cells = [Cell(row.parameter.title, _how(row)), figure_cell(row.figure)]
    if held:
        cells += [_quantity(row.baseline, row.parameter.unit), _share(row, row.baseline)]
    if printed:
        # Vendors print what all links of a device carry together, which one pair reaches only behind a switch.
        every = row.parameter.key == "link"
        cells.append(_quantity(row.datasheet, row.parameter.unit, "of all links" if every else ""))
        cells.append(_NOTHING if every else _share(row, row.datasheet))
    return cells


def _how(row: ParameterRow) -> str:
    """The tags that tell which of several measurements it is."""
    tags = row.figure.tags if row.figure and row.figure.estimate else {}
    words = [str(tags[key]) for key in ("shape", "memory") if key in tags]
    return ", ".join([*words, *([f"devices {tags['from']} and {tags['to']}"] if "from" in tags else [])])


def _quantity(value: float | None, unit: str, note: str = "") -> Cell:
    return Cell("NA", "", "quiet") if value is None else Cell(quantity(value, unit), note)


def _share(row: ParameterRow, value: float | None) -> Cell:
    measured = row.figure.value if row.figure else None
    return _NOTHING if value is None or measured is None else Cell(percent(measured / value))
