"""The score tables on a terminal or in a log."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from assay.report.text import line
from assay.scoring.result import Row, Scorecard, Section
from assay.units import format_si


def score_tables(card: Scorecard) -> list[Table | Text]:
    """One table per section (a sentence for one without rows), for `rich.console.Console.print`."""
    return [_table(card, section) if section.rows else _sentence(card, section) for section in card.sections]


def _sentence(card: Scorecard, section: Section) -> Text:
    return Text(f"{section.title}: NA, {section.note} (profile {line(card.profile)}); {line(card.baseline_source)}")


def _table(card: Scorecard, section: Section) -> Table:
    total = "NA" if section.score is None else f"{section.score:.4f}"
    title = f"{section.title}: {total} (profile {line(card.profile)}, baseline {line(card.baseline)})"
    # Text, not str: a label out of a file must not be read as rich's own markup.
    caption = Text(f"{section.formula}. {section.note}".strip())
    table = Table(title=Text(title), caption=caption, title_justify="left")
    for heading in ("measurement", "weight", "measured", "baseline", "score", "note"):
        table.add_column(heading, justify="left" if heading in ("measurement", "note") else "right")
    for row in section.rows:
        table.add_row(
            Text(line(row.label)),
            f"{row.weight:.2%}",
            _figures([part.measured for part in row.configurations] or [row.measured], row),
            _figures([part.baseline for part in row.configurations] or [row.baseline], row),
            "NA" if row.score is None else f"{row.score:.4f}",
            Text(line(_note(row), 200)),
        )
    return table


def _figures(values: Sequence[float | None], row: Row) -> str:
    if row.checks:
        return "–"  # a function test has several, which the note names
    return " / ".join(format_si(value, row.unit) for value in values)


def _note(row: Row) -> str:
    told = [f"{part.title}: {part.note}" for part in row.configurations if part.note]
    return "; ".join([*([row.note] if row.note else []), *told])
