"""Scores: figures of a run against a baseline, under a profile. Formulas with their sources: docs/metrics.md."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from assay.scoring.baseline import FREE, Baseline, BaselineFigure
from assay.scoring.function import baseline_curves, deviations, function_section
from assay.scoring.matching import difference, differing, is_base, is_wanted, label_of, meant_to_measure
from assay.scoring.profile_format import Match, Profile, ProfileRow, ProfileSection
from assay.scoring.result import CaseResult, Configuration, Figure, Row, RunResult, Scorecard, Section

_FORMULAS = {
    "throughput_deepspeed": "Σ weight × throughput / baseline",
    "tgs": "Σ weight × mean over the model's configurations of TGS / baseline",
}
_PRETRAINING = "workloads/pretrain"  # of what figures are in baselines that do not name their script


def score_run(result: RunResult, profile: Profile, baseline: Baseline | None) -> Scorecard:
    """Every section of `profile`. Not submitted: NA, counts 0. Failed: 0. Without a baseline: NA."""
    sections = [
        function_section(result, section, baseline)
        if section.metric == "support"
        else _section(result, section, baseline)
        for section in profile.sections
    ]
    curves = baseline_curves(result, baseline)
    return Scorecard(
        profile.name,
        baseline.title if baseline else "none",
        baseline.source if baseline else "make one of any run with `assay baseline record`",
        sections,
        curves,
        deviations(result, curves),
    )


def _section(result: RunResult, section: ProfileSection, baseline: Baseline | None) -> Section:
    figures = [item for item in baseline.figures if _is_of(section, item)] if baseline else []
    wanted = _equal_rows(figures, section) if section.from_baseline else section.rows
    total = sum(row.weight for row in wanted)
    rows = [_row(result, section, row, row.weight / total, figures) for row in wanted]
    scored = [row for row in rows if row.score is not None]
    score = sum(row.weight * row.score for row in scored if row.score is not None) if scored else None
    return Section(
        section.key,
        section.title,
        f"{_FORMULAS[section.metric]}, weights normalised to 1",
        rows,
        score,
        "" if wanted else "no baseline for this part",
        section.metric,
        section.chapter,
        [column.title for column in section.columns],
    )


def _is_of(section: ProfileSection, item: BaselineFigure) -> bool:
    script = item.match.get("script", _PRETRAINING if item.metric == "tgs" else None)
    return item.metric == section.metric and (not section.scripts or script in section.scripts)


def _equal_rows(figures: Sequence[BaselineFigure], section: ProfileSection) -> list[ProfileRow]:
    """Equal weight per model (or collective configuration); a model's weight is shared by its configurations.

    What the section's columns tell apart is one row.
    """
    across = {key for column in section.columns for key in column.match}
    groups: dict[Any, list[Match]] = defaultdict(list)
    for index, figure in enumerate(figures):
        match: Match = {key: value for key, value in figure.match.items() if key not in across}
        members = groups[figure.match.get("model", index)]
        members += [match] if match not in members else []
    return [
        ProfileRow(weight=1 / len(groups) / len(members), match=match)
        for members in groups.values()
        for match in members
    ]


def _row(
    result: RunResult, section: ProfileSection, row: ProfileRow, weight: float, figures: Sequence[BaselineFigure]
) -> Row:
    if row.match is None:
        return Row(row.title or "not known", weight, None, None, "", None, None, row.reason or "")
    label, world = row.title or label_of(row.match), row.match.get("world")
    ranks = world if isinstance(world, int) else None
    if not section.columns:
        one, case = _configuration(result, section, "", row.match, figures)
        # The ratio is of two numbers; a failed case has a score without one.
        ratio = one.score if one.measured is not None and one.baseline is not None else None
        note = "; ".join(filter(None, (one.note, one.how)))
        return Row(label, weight, one.measured, one.baseline, one.unit, ratio, one.score, note, (), (), ranks, case)
    found = [
        _configuration(result, section, column.title, {**row.match, **column.match}, figures)
        for column in section.columns
    ]
    parts = [part for part, _ in found]
    return Row(
        label,
        weight,
        None,
        None,
        next((part.unit for part in parts if part.unit), ""),
        None,
        _mean(parts),
        "",
        parts,
        (),
        ranks,
        next((case for _, case in found if case), ""),
    )


def _mean(parts: Sequence[Configuration]) -> float | None:
    """Over the configurations for which there is a baseline: of these, what was not submitted counts 0.

    What has no baseline is no configuration of this test. NA where nothing could be scored.
    """
    if all(part.score is None for part in parts):
        return None
    counted = [part for part in parts if part.score is not None or part.baseline is not None]
    return sum(part.score or 0.0 for part in counted) / len(counted)


def _configuration(
    result: RunResult, section: ProfileSection, title: str, wanted: Mapping[str, Any], figures: Sequence[BaselineFigure]
) -> tuple[Configuration, str]:
    """One measurement against its baseline, and the name of the case that gave it."""
    known = [item for item in sorted(figures, key=lambda item: len(item.match)) if is_base(item, wanted)]
    unit, against = (known[0].unit, known[0].value) if known else ("", None)
    cases = [case for case in result.cases if not section.scripts or case.script in section.scripts]
    found = [
        # Of what is measured in several places of memory, the plainest counts: it has the fewest tags.
        (case, figure, _base_of(known, case, figure))
        for case in cases
        for figure in sorted(case.figures, key=lambda figure: len(figure.tags))
        if figure.metric == section.metric and is_wanted(case, figure, wanted)
    ]
    if found:
        # A run may have trained in several ways. The first that the baseline has as well is scored.
        case, figure, base = next((one for one in found if one[2]), found[0])
        if case.status is None or case.status.state != "passed":
            return Configuration(title, None, against, unit, 0.0, f"case {case.name} did not pass"), case.name
        return _held_against(title, case, figure, base, known, _left_open(wanted, figure)), case.name
    failed = next((case for case in cases if meant_to_measure(case, wanted)), None)
    if failed is not None:
        return Configuration(title, None, against, unit, 0.0, f"case {failed.name} did not pass"), failed.name
    return Configuration(title, None, against, unit, None, "not submitted"), ""


def _base_of(known: Sequence[BaselineFigure], case: CaseResult, figure: Figure) -> BaselineFigure | None:
    """The baseline's figure of the very same measurement; of several, of the same engine and micro-batch if there is one."""
    same = [item for item in known if not differing(item, case, figure)]
    return max(same, key=lambda item: sum(item.match.get(key) == figure.tags.get(key) for key in FREE), default=None)


def _held_against(
    title: str, case: CaseResult, figure: Figure, base: BaselineFigure | None, known: Sequence[BaselineFigure], how: str
) -> Configuration:
    share, of = _share(case, figure)
    if base is not None:
        if figure.value is None:
            return Configuration(
                title, None, base.value, figure.unit, None, figure.reason or "not known", None, None, how
            )
        return Configuration(
            title, figure.value, base.value, figure.unit, figure.value / base.value, "", share, of, how
        )
    if not known:
        return Configuration(title, figure.value, None, figure.unit, None, "no baseline", share, of, how)
    nearest = min(known, key=lambda item: len(differing(item, case, figure)))
    note = difference(nearest, case, figure, differing(nearest, case, figure))
    return Configuration(title, figure.value, nearest.value, figure.unit, None, note, share, of, how)


def _left_open(wanted: Mapping[str, Any], figure: Figure) -> str:
    """How it was trained, where the row leaves that open."""
    method = figure.tags.get("method")
    return f"method {method}" if method is not None and isinstance(wanted.get("method", []), list) else ""


def _share(case: CaseResult, figure: Figure) -> tuple[float | None, str | None]:
    """The figure as a share of its ceiling; of TGS, the MFU that goes with it."""
    if figure.metric == "tgs":
        figure = next((one for one in case.figures if one.metric == "mfu" and one.tags == figure.tags), figure)
    return figure.share, figure.share_of
