"""Cases that are no sweeps: their charts, and the chapters of those that have none of their own."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from assay.report.cells import Chapter, Part, figure_table, metric_label, tag_words
from assay.report.charts import Axis, Chart, Histogram, LineChart, Series
from assay.report.communication import is_of_sweep
from assay.report.quantities import count_of
from assay.scoring import links, overlap
from assay.scoring.latency import METRICS as FITTED
from assay.scoring.prediction import MEASURED
from assay.scoring.result import CaseResult, Curve, Figure, RunResult

_FIRST = ("loss", "step_time")  # the curves a reader looks for, before all others
_OWN_CHAPTER = (links.SCRIPT, overlap.SCRIPT)  # what they measured is shown elsewhere
_MARKS = ("p50", "p95", "p99")


def is_training(case: CaseResult) -> bool:
    """Whether the case trained a model."""
    return any(figure.metric == "tgs" for figure in case.figures) or any(
        curve.metric == "loss" for curve in case.curves
    )


def plain_figures(case: CaseResult) -> list[Figure]:
    """The figures of a case that are neither points of a sweep, nor fitted to one, nor predictions."""
    elsewhere = {*FITTED, *MEASURED}
    return [figure for figure in case.figures if not is_of_sweep(figure) and figure.metric not in elsewhere]


def other_chapter(result: RunResult) -> Chapter:
    """Whatever other cases measured, shown without knowing what it is."""
    parts = [
        _part(case, result)
        for case in result.cases
        if not is_training(case) and case.script not in _OWN_CHAPTER and (plain_figures(case) or case.curves)
    ]
    return Chapter("figures", "Further figures", "", parts)


def sensor_chapter(result: RunResult) -> Chapter:
    """What the sensors beside each case tell of every device of its hosts."""
    found = [
        replace(figure, tags={"case": case.name, **figure.tags}) for case in result.cases for figure in case.sensed
    ]
    lead = "Read every second by a process beside the ranks. A counter that did not rise is not shown." if found else ""
    parts = [Part(tables=[figure_table("Sensors beside the cases", found)])] if found else []
    return Chapter("sensors", "Sensors beside the cases", lead, parts)


def _part(case: CaseResult, result: RunResult) -> Part:
    figures = plain_figures(case)
    doubts = sum(doubt.case == case.name for doubt in result.doubts)
    lead = f"{count_of(doubts, 'doubt')} about this case (†): see Doubts." if doubts else ""
    tables = [figure_table(f"Figures of {case.name}", figures)] if figures else []
    return Part(case.name, lead, case_charts(case), tables)


def case_charts(case: CaseResult) -> list[Chart]:
    """Charts of a case's curves. Phases of one curve share a chart; times of steps become a distribution."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in case.curves:
        tags = {key: value for key, value in curve.tags.items() if key != "phase"}
        groups.setdefault((curve.metric, tag_words(tags)), []).append(curve)
    ordered = sorted(groups.items(), key=lambda item: _FIRST.index(item[0][0]) if item[0][0] in _FIRST else len(_FIRST))
    charts: list[Chart] = []
    for (metric, words), curves in ordered:
        title = f"{metric_label(metric)}{f', {words}' if words else ''}"
        stepped = [curve for curve in curves if curve.steps is not None]
        loose = [curve for curve in curves if curve.steps is None]
        if metric == "step_time" or loose:
            chosen = curves if metric == "step_time" else loose
            charts.append(_distribution(case, metric, title, chosen))
        if stepped and metric != "step_time":
            charts.append(_over_steps(metric, title, stepped))
    return charts


def _over_steps(metric: str, title: str, curves: Sequence[Curve]) -> LineChart:
    series, band = [], None
    for curve in curves:
        steps = np.asarray(curve.steps, dtype=np.float64)
        warmup = curve.tags.get("phase") == "warmup"
        shown = min(len(steps), len(curve.samples))
        if warmup and shown:
            band = (float(steps[0]), float(steps[shown - 1]), "warm-up")
        label = str(curve.tags.get("phase") or "")
        series.append(Series(label, steps[:shown].tolist(), curve.samples[:shown].tolist(), faint=warmup))
    unit = curves[0].unit
    return LineChart(
        f"{title} over {'steps' if curves[0].over == 'step' else 'time'}",
        Axis("step" if curves[0].over == "step" else "time", curves[0].over, tight=True),
        Axis(metric_label(metric), unit, metric=metric),
        series,
        band,
    )


def _distribution(case: CaseResult, metric: str, title: str, curves: Sequence[Curve]) -> Histogram:
    measured = [curve for curve in curves if curve.tags.get("phase") != "warmup"]
    samples = np.concatenate([curve.samples for curve in measured]) if measured else np.zeros(0)
    named = {figure.metric: figure.value for figure in plain_figures(case)}
    marks = [(mark, value) for mark in _MARKS if (value := named.get(f"{metric}_{mark}")) is not None]
    unit = curves[0].unit
    axis = Axis(metric_label(metric), unit, tight=True, metric=metric)
    return Histogram(f"{title}, {count_of(samples.size, 'sample')}", axis, samples, marks)
