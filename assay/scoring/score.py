"""Scores: figures of a run against a baseline, under a profile. Formulas with their sources: docs/metrics.md."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from assay.options import CommsOptions
from assay.options.comms import ITEM_BYTES
from assay.scoring.baseline import PLACED, VARIANTS, Baseline, BaselineFigure, Profile, ProfileRow, ProfileSection
from assay.scoring.result import CaseResult, Row, RunResult, Scorecard, Section
from assay.units import format_size

_FORMULAS = {
    "throughput_deepspeed": "Σ weight × throughput / baseline",
    "tgs": "Σ weight × mean over the model's configurations of TGS / baseline",
}


def score_run(result: RunResult, profile: Profile, baseline: Baseline | None) -> Scorecard:
    """Every section of `profile`. Not submitted: NA, counts 0. Failed: 0. Without a baseline: NA."""
    sections = [_section(result, section, baseline) for section in profile.sections]
    return Scorecard(
        profile.name,
        baseline.title if baseline else "none",
        baseline.source if baseline else "make one of any run with `assay baseline record RUN`",
        sections,
    )


def _section(result: RunResult, section: ProfileSection, baseline: Baseline | None) -> Section:
    figures = [item for item in baseline.figures if item.metric == section.metric] if baseline else []
    wanted = section.rows if section.rows != "baseline" else _equal_rows(figures)
    total = sum(row.weight for row in wanted)
    rows = [_row(result, section, row, row.weight / total, figures) for row in wanted]
    scored = [row for row in rows if row.score is not None]
    formula = f"{_FORMULAS[section.metric]}, weights normalised to 1"
    if not wanted:
        return Section(section.key, section.title, formula, rows, None, "no baseline for this part")
    score = sum(row.weight * row.score for row in scored if row.score is not None) if scored else None
    return Section(section.key, section.title, formula, rows, score)


def _equal_rows(figures: Sequence[BaselineFigure]) -> list[ProfileRow]:
    """Equal weight per model (or collective configuration); a model's weight is shared by its configurations."""
    groups: dict[Any, list[BaselineFigure]] = defaultdict(list)
    for index, figure in enumerate(figures):
        groups[figure.match.get("model", index)].append(figure)
    return [
        ProfileRow(weight=1 / len(groups) / len(members), match=figure.match)
        for members in groups.values()
        for figure in members
    ]


def _row(
    result: RunResult, section: ProfileSection, row: ProfileRow, weight: float, figures: Sequence[BaselineFigure]
) -> Row:
    plainest = sorted(figures, key=lambda item: len(item.match))
    base = next((item for item in plainest if _agrees(row.match, item.match)), None)
    unit = base.unit if base else ""
    label = label_of(row.match)
    for case in result.cases:
        # Of what is measured in several places of memory, the plainest counts: it has the fewest tags.
        for figure in sorted(case.figures, key=lambda figure: len(figure.tags)):
            if figure.metric != section.metric or not _agrees(row.match, figure.tags):
                continue
            if case.status is None or case.status.state != "passed":
                return Row(
                    label, weight, None, base.value if base else None, unit, None, 0.0, f"case {case.name} did not pass"
                )
            ratio = figure.value / base.value if base and figure.value is not None else None
            note = "" if base else "no baseline"
            return Row(label, weight, figure.value, base.value if base else None, figure.unit, ratio, ratio, note)
    failed = next((case for case in result.cases if _meant_to_measure(case, row.match)), None)
    if failed is not None:
        return Row(
            label, weight, None, base.value if base else None, unit, None, 0.0, f"case {failed.name} did not pass"
        )
    return Row(label, weight, None, base.value if base else None, unit, None, None, "not submitted")


def _agrees(wanted: Mapping[str, Any], tags: Mapping[str, Any]) -> bool:
    """Whether a figure is the wanted measurement: all that is wanted, and no variant that is not."""
    return all(tags.get(key) == wanted.get(key) for key in (*wanted, *VARIANTS))


def _meant_to_measure(case: CaseResult, wanted: Mapping[str, Any]) -> bool:
    """Whether a case that was started, and did not pass, is the one that should have given the wanted figure."""
    if case.status is None or case.status.state in ("passed", "skipped") or case.world != wanted.get("world"):
        return False
    if "op" in wanted:
        return wanted["bytes"] in _sizes_of(case, str(wanted["op"]))
    return all(case.options.get(key) == value for key, value in wanted.items() if key in case.options)


def _sizes_of(case: CaseResult, op: str) -> list[int]:
    # What the case would have swept, had it not failed.
    try:
        options = CommsOptions.model_validate(case.options)
    except ValidationError:
        return []
    if op not in options.ops:
        return []
    group = len(options.groups(case.world)[0])
    return [size for dtype in options.dtype for size in options.sizes(op, group, ITEM_BYTES[dtype])]


def label_of(match: Mapping[str, Any]) -> str:
    """A row's name: `all_reduce, 8 ranks, 16 MiB`, `all_reduce, 2 ranks, 1 KiB, int32, coalesced 4`, `llama-tiny, ddp`."""
    what = [str(match[key]) for key in ("op", "model", "engine") if key in match]
    if "world" in match:
        what.append(f"{match['world']} rank{'' if match['world'] == 1 else 's'}")
    if "bytes" in match:
        what.append(format_size(int(match["bytes"])))
        what += [str(match["dtype"])] if match.get("dtype", "float32") != "float32" else []
    what += [f"{key} {match[key]}" for key in (*VARIANTS, *PLACED) if key in match]
    return ", ".join(what)
