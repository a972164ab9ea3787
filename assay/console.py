"""What a person sees while a run goes on: a live bar on a terminal, plain lines in a log."""

import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from assay.rundir import Status
from assay.suite import Case
from assay.units import format_duration

LINE_SECONDS = 10.0  # in a log, a case says how far it is no more often than this
_COLOURS = {"passed": "green", "failed": "red", "timeout": "red", "skipped": "yellow"}


class ConsoleWatcher:
    """Tells a run's progress. Use as a context manager, so that the terminal is left tidy."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self._live,
            transient=True,
        )
        self._task: TaskID | None = None
        self._said = 0.0

    def __enter__(self) -> "ConsoleWatcher":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def case_starts(self, case: Case, number: int, total: int, attempt: int) -> None:
        """See runner.Watcher."""
        ranks = "1 rank" if case.world == 1 else f"{case.world} ranks"
        again = f", attempt {attempt}" if attempt > 1 else ""
        title = f"[{number}/{total}] {case.name} ({case.script}, {ranks}{again})"
        if self._live:
            self._task = self._progress.add_task(escape(title), total=None, text="starting")
        else:
            self._console.print(
                f"{title}: started, at most {format_duration(case.time_limit)}", markup=False, highlight=False
            )
        self._said = time.monotonic()

    def case_moves(self, case: Case, done: int, total: int, text: str, left: float | None) -> None:
        """See runner.Watcher."""
        rest = f", about {format_duration(left)} left in all" if left is not None else ""
        if self._live and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, text=escape(f"{text}{rest}"))
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self._console.print(f"  {case.name}: {done}/{total} {text}{rest}", markup=False, highlight=False)

    def case_ends(self, case: Case, status: Status, attempt: Path) -> None:
        """See runner.Watcher."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        colour = _COLOURS[status.state]
        line = f"[{colour}]{status.state:<8}[/] {escape(case.name)}  {format_duration(status.seconds)}"
        self._console.print(line, highlight=False)
        if status.reason:
            self._console.print(f"         {status.reason}", markup=False, highlight=False)
        if status.advice:
            self._console.print(f"         {status.advice}", markup=False, highlight=False)

    def case_kept(self, case: Case) -> None:
        """See runner.Watcher."""
        self._console.print(f"kept     {case.name}: passed before", markup=False, highlight=False)
