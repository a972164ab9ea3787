"""Tables of scored sections: rows with one figure, rows with several configurations, and function tests."""

from collections.abc import Sequence

from assay.report.cells import Cell, Column, Part, Table
from assay.report.quantities import number, percent, quantity
from assay.report.text import line
from assay.report.verdict import score_text
from assay.scoring.result import Check, Configuration, Row, Section

_MISSING = Cell("NA", "", "quiet")
_NONE = Cell("–", "", "quiet")
_CHECKS = {"loss": "Loss", "variance": "Loss variance", "ppl": "PPL"}


def section_part(section: Section) -> Part:
    """A section's score, table and formula."""
    lead = f"Score {score_text(section.score)}" + (f": {section.note}" if section.note else "")
    return Part(section.title, lead, tables=[_table(section)] if section.rows else [], code=section.formula)


def _table(section: Section) -> Table:
    caption = f"{section.title}: scores"
    counts = section.score is not None  # what is NA counts 0 in a part that has a score
    if section.metric == "support":
        heads = [f"{name}, {what}" for name in _CHECKS.values() for what in ("target", "measured")]
        return Table(
            caption, _columns("Model", "Weight", *heads, "Score"), [_function_row(row, counts) for row in section.rows]
        )
    if section.columns:
        heads = [f"{title}, {what}" for title in section.columns for what in ("baseline", "measured")]
        rows = [_configured_row(row, counts) for row in section.rows]
        return Table(caption, _columns("Model", "Devices", "Weight", *heads, "Score"), rows)
    names = ("Test", "Weight", "Measured", "Baseline", "Ratio", "Score")
    return Table(caption, _columns(*names), [_plain_row(row, counts) for row in section.rows])


def _columns(first: str, *numbers: str) -> list[Column]:
    return [Column(first), *(Column(name, numeric=True) for name in numbers)]


def _plain_row(row: Row, counts: bool) -> list[Cell]:
    return [
        Cell(row.label),
        Cell(percent(row.weight)),
        _quantity(row.measured, row.unit),
        _quantity(row.baseline, row.unit),
        _MISSING if row.ratio is None else Cell(number(row.ratio)),
        _score(row, counts),
    ]


def _configured_row(row: Row, counts: bool) -> list[Cell]:
    cells = [cell for part in row.configurations for cell in _configuration(part)]
    world = Cell(f"{row.world:,}") if row.world is not None else _NONE
    return [Cell(row.label, _case(row)), world, Cell(percent(row.weight)), *cells, _score(row, counts)]


def _configuration(part: Configuration) -> list[Cell]:
    share = f"{percent(part.share)} of {part.share_of}" if part.share is not None else ""
    note = "; ".join(word for word in (part.note, part.how, share) if word)
    measured = _quantity(part.measured, part.unit)
    return [_quantity(part.baseline, part.unit), Cell(measured.text, note, "bad" if part.score == 0 else measured.tone)]


def _function_row(row: Row, counts: bool) -> list[Cell]:
    found = {check.name: check for check in row.checks}
    cells = [cell for name in _CHECKS for cell in _check(found.get(name))]  # type: ignore[call-overload] # the names are literals, which mypy widens to str
    return [Cell(row.label, _case(row)), Cell(percent(row.weight)), *cells, _score(row, counts)]


def _check(check: Check | None) -> Sequence[Cell]:
    if check is None:
        return _NONE, _NONE
    target = _NONE if check.target is None else Cell(f"≤ {number(check.target)}")
    if check.target is None and check.name == "variance" and check.measured is not None:
        target = Cell("0", "the baseline against itself")
    if check.measured is None:
        return target, Cell("NA", check.note, "quiet") if check.note else _MISSING
    return target, Cell(number(check.measured), check.note, "bad" if check.met is False else "")


def _quantity(value: float | None, unit: str) -> Cell:
    return _MISSING if value is None else Cell(quantity(value, unit))


def _case(row: Row) -> str:
    data = f", data {line(row.data, 60)}" if row.data else ""
    return f"case {row.case}{data}" if row.case else ""


def _score(row: Row, counts: bool) -> Cell:
    if row.score is not None:
        return Cell(score_text(row.score), row.note, "bad" if row.score == 0 else "")
    why = next((part.note for part in row.configurations if part.measured is not None), "")
    note = row.note or why or "not submitted"
    return Cell(score_text(None), f"{note}, counts 0" if counts else note, "quiet")
