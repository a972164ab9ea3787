"""The checks as a table: coloured and wrapped on a terminal; in a log one line a check, which can be searched."""

import os

from rich.console import Console
from rich.table import Table
from rich.text import Text

from assay.preflight.check import State, Verdict
from assay.report.text import line

_COLOURS: dict[State, str] = {"failed": "red", "warning": "yellow", "unknown": "dim", "ok": "green"}


def show(verdict: Verdict, console: Console | None = None) -> None:
    """Print the table and, beneath, the verdict. Texts of other hosts are shown harmlessly."""
    shown = console or Console()
    # mpirun gives every rank a terminal, also where its own output goes into a file.
    if shown.is_terminal and "OMPI_COMM_WORLD_RANK" not in os.environ:
        shown.print(_table(verdict))
        shown.print(Text(verdict.sentence, style="bold green" if verdict.ready else "bold red"))
    else:
        shown.print(Text(plain(verdict)), soft_wrap=True)


def plain(verdict: Verdict) -> str:
    """The table without colours: a line for each check, and one beneath for what to do."""
    states = max((len(check.state) for check in verdict.checks), default=0)
    names = max((len(check.name) for check in verdict.checks), default=0)
    rows = []
    for check in verdict.checks:
        rows.append(f"{check.state:<{states}}  {check.name:<{names}}  {line(check.found)}")
        if check.fix:
            rows.append(f"{'':<{states}}  {'':<{names}}  → {line(check.fix)}")
    return "\n".join([*rows, verdict.sentence])


def _table(verdict: Verdict) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in verdict.checks:
        told = Text(line(check.found))
        if check.fix:
            told.append(f"\n→ {line(check.fix)}", style="bold")
        table.add_row(Text(check.state, style=_COLOURS[check.state]), check.name, told)
    return table
