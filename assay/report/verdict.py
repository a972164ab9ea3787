"""The first lines of every report: did it pass, what failed and why, and the one figure of each case that matters."""

from collections.abc import Iterator
from dataclasses import dataclass

from assay.report.cells import Cell, figure_cell, metric_label, ranks
from assay.report.communication import Sweep, is_of_sweep, setting, sweeps
from assay.report.measurements import plain_figures
from assay.report.quantities import count_of, number, size
from assay.scoring.result import CaseResult, Figure, RunResult

_FIRST = 3  # figures of a case that is neither a sweep nor a training
_TRAINING = ("tgs", "mfu", "final_loss")


@dataclass(frozen=True)
class Trouble:
    """One case that did not pass: what happened and what to do."""

    case: str
    state: str
    reason: str
    advice: str


@dataclass(frozen=True)
class Verdict:
    """The run in a sentence. good: cases passed, and none ended otherwise but by being skipped on purpose."""

    headline: str
    good: bool
    troubles: list[Trouble]
    doubts: str
    scores: list[tuple[str, str]]


@dataclass(frozen=True)
class KeyFigure:
    """A figure worth reading first. what: which figure of the case it is. figure None: the case has none."""

    case: str
    what: str
    figure: Figure | None
    cell: Cell


def state_of(case: CaseResult) -> str:
    """`passed`, `failed`, `timeout`, `skipped`, or `not finished` for a case without a status."""
    return case.status.state if case.status else "not finished"


def verdict(result: RunResult) -> Verdict:
    """What a reader must know before any figure."""
    troubles = [_trouble(case) for case in result.cases if state_of(case) != "passed"]
    passed = len(result.cases) - len(troubles)
    if not result.cases:
        headline = "No case was run"
    elif not troubles:
        headline = "The case passed" if passed == 1 else f"All {passed} cases passed"
    else:
        states = [trouble.state for trouble in troubles]
        kinds = ", ".join(f"{states.count(state)} {_past(state)}" for state in dict.fromkeys(states))
        headline = f"{passed} of {count_of(len(result.cases), 'case')} passed, {kinds}"
    doubts = f"{count_of(len(result.doubts), 'doubt')} about the figures" if result.doubts else "No doubts"
    good = passed > 0 and all(trouble.state == "skipped" for trouble in troubles)
    return Verdict(headline, good, troubles, doubts, score_words(result))


def score_words(result: RunResult) -> list[tuple[str, str]]:
    """Each section's title and score; NA counts 0."""
    if result.scorecard is None:
        return []
    return [(section.title, score_text(section.score)) for section in result.scorecard.sections]


def score_text(score: float | None) -> str:
    """A score with three decimals, or three digits where it is small; None is NA, not 0."""
    if score is None:
        return "NA"
    return f"{score:.3f}" if 0.1 <= abs(score) < 1e4 else number(score)


def key_figures(result: RunResult) -> list[KeyFigure]:
    """In the order of the cases: the highest busbw of every collective; TGS, MFU and loss of training; else what came first."""
    found = sweeps(result)
    rows: list[KeyFigure] = []
    for case in result.cases:
        passed = state_of(case) == "passed"  # what a failed case measured is in its tables, and no result
        own = [*_of_sweeps(case, found), *_of_training(case)] if passed else []
        if not own and passed:
            known = [figure for figure in plain_figures(case) if figure.estimate is not None]
            own = [KeyFigure(case.name, _words(figure), figure, figure_cell(figure)) for figure in known[:_FIRST]]
        # A case may pass without a figure of its own: it measured the ceilings.
        if not passed:
            reason = (case.status.reason if case.status else None) or "the case recorded no figure"
            own = [KeyFigure(case.name, state_of(case), None, Cell("NA", reason, "quiet"))]
        rows += own
    return rows


def _words(figure: Figure) -> str:
    """The figure's name, and the element type where it has one."""
    return " ".join(str(word) for word in (metric_label(figure.metric), figure.tags.get("dtype")) if word)


def _of_sweeps(case: CaseResult, found: list[Sweep]) -> Iterator[KeyFigure]:
    if not any(map(is_of_sweep, case.figures)):
        return
    for sweep in found:
        best = sweep.best() if sweep.case == case.name else None
        if best is not None:
            # The setting is worth its room only where the case measured the collective at several.
            several = sum(other.op == sweep.op and other.case == case.name for other in found) > 1
            at = setting(sweep) if several else ranks(sweep.tags["world"])
            words = f"{sweep.op} busbw, {size(best[0])}, {at}"
            yield KeyFigure(case.name, words, best[1], figure_cell(best[1]))


def _of_training(case: CaseResult) -> Iterator[KeyFigure]:
    named = {figure.metric: figure for figure in plain_figures(case)}
    if "tgs" not in named:
        return
    for metric in _TRAINING:
        if metric in named:
            yield KeyFigure(case.name, metric_label(metric), named[metric], figure_cell(named[metric]))


def _trouble(case: CaseResult) -> Trouble:
    if case.status is None:
        return Trouble(
            case.name,
            state_of(case),
            "no status was written: it still runs, never started, or its runner was killed",
            "run `assay run --resume` on the folder; cases that passed are kept",
        )
    return Trouble(
        case.name, case.status.state, case.status.reason or "no reason was recorded", case.status.advice or ""
    )


def _past(state: str) -> str:
    return {"timeout": "timed out"}.get(state, state)
