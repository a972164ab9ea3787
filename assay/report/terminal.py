"""The end of a run on the terminal: verdict, key figures, doubts, where the report lies."""

from rich.text import Text

from assay.report.quantities import count_of
from assay.report.text import line
from assay.report.verdict import KeyFigure, key_figures, verdict
from assay.scoring.result import RunResult

_MOST = 14  # lines of figures; more would push the verdict off the screen
_NAME, _WHAT = 24, 58


def summarise(result: RunResult, report: str | None = None) -> Text:
    """A few lines for `rich.console.Console.print(…, soft_wrap=True)`; `.plain` holds them without style.

    report: where the full report was written, if it was.
    """
    top = verdict(result)
    text = Text()
    text.append(f"{line(top.headline)}.\n", style="bold green" if top.good else "bold red")
    for item in top.troubles[:_MOST]:
        text.append(f"  {line(item.case, 80)} {line(item.state, 40)}: ", style="red")
        text.append(f"{line(item.reason, 400)}\n")
        if item.advice:
            text.append(f"    {line(item.advice, 400)}\n", style="dim")
    _more(text, len(top.troubles) - _MOST, "case")
    _figures(text, _shortened([item for item in key_figures(result) if item.figure is not None]))
    if top.scores:
        text.append("Scores: " + ", ".join(f"{line(name, 60)} {score}" for name, score in top.scores) + "\n")
    text.append(f"{top.doubts}{'' if result.doubts else '.'}", style="yellow" if result.doubts else "")
    text.append(
        f": {'; '.join(line(f'{doubt.subject}: {doubt.message}', 160).rstrip('.') for doubt in result.doubts[:2])}"
        if result.doubts
        else ""
    )
    text.append(" …\n" if len(result.doubts) > 2 else "\n")
    text.append(f"Report: {line(report)}" if report else f"Run: {line(result.path)}")
    return text


def _shortened(rows: list[KeyFigure]) -> list[KeyFigure]:
    """All rows if they fit, else the first of each case."""
    if len(rows) <= _MOST:
        return rows
    first: dict[str, KeyFigure] = {}
    for row in rows:
        first.setdefault(row.case, row)
    return list(first.values())


def _figures(text: Text, rows: list[KeyFigure]) -> None:
    shown = [(line(row.case, _NAME), line(row.what, _WHAT), row) for row in rows[:_MOST]]
    names = max((len(name) for name, _, _ in shown), default=0)
    whats = max((len(what) for _, what, _ in shown), default=0)
    previous = ""
    for name, what, row in shown:
        text.append(f"  {name if row.case != previous else '':<{names}}  ")
        text.append(f"{what:<{whats}}  ", style="dim")
        text.append(line(row.cell.text, 60), style="bold")
        text.append(f"  {line(row.cell.note, 120)}".rstrip() + "\n", style="dim")
        previous = row.case
    _more(text, len(rows) - _MOST, "figure")


def _more(text: Text, left: int, noun: str) -> None:
    if left > 0:
        text.append(f"  … and {count_of(left, 'more ' + noun)}: see the report\n", style="dim")
