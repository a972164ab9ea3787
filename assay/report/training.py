"""The chapters Training and Fine-tuning: scored tables as in the evaluation report, then every case."""

from dataclasses import replace

from assay.report.cells import Chapter, Part, figure_table
from assay.report.measurements import case_charts, is_training, plain_figures
from assay.report.phases import phases_part
from assay.report.prediction import prediction_part
from assay.report.quantities import count_of
from assay.report.sections import section_part
from assay.scoring.result import CaseResult, RunResult, Section

FINETUNING = "workloads/finetune"
_LEAD = (
    "Loss per step with the warm-up shaded, and how the times of the measured steps are distributed. TGS: tokens per device "
    "and second, padding not counted. MFU: of the measured GEMM rate, and of the datasheet where the device has one."
)
_GENERATED = "The weights were generated, so loss targets that hold for pretrained weights do not apply."


def training_chapter(result: RunResult) -> Chapter:
    """Pretraining, of causal and of masked models; empty where no case pretrained."""
    return _chapter(result, "training", "Training", [case for case in result.cases if not _is_finetuning(case)])


def finetuning_chapter(result: RunResult) -> Chapter:
    """Fine-tuning; empty where no case fine-tuned."""
    return _chapter(result, "finetuning", "Fine-tuning", [case for case in result.cases if _is_finetuning(case)])


def sections_of(result: RunResult, anchor: str) -> list[Section]:
    """The scored sections whose tables a chapter shows; none where the chapter is empty, so that they are not lost."""
    card = result.scorecard
    trained = [case for case in result.cases if is_training(case) and _is_finetuning(case) == (anchor == "finetuning")]
    return [section for section in card.sections if section.chapter == anchor] if card and trained else []


def _is_finetuning(case: CaseResult) -> bool:
    return case.script == FINETUNING


def _chapter(result: RunResult, anchor: str, title: str, cases: list[CaseResult]) -> Chapter:
    trained = [case for case in cases if is_training(case)]
    if not trained:
        return Chapter(anchor, title)
    parts = [section_part(section) for section in sections_of(result, anchor)]
    for case in trained:
        parts.append(_case_part(case, result))
        phases = phases_part(case.name, case.steps)
        parts += [phases] if phases else []
    predicted = prediction_part(trained)
    parts += [predicted] if predicted else []
    return Chapter(anchor, title, _LEAD, parts)


def _case_part(case: CaseResult, result: RunResult) -> Part:
    card = result.scorecard
    figures = plain_figures(case)
    deviation = card.deviations.get(case.name) if card else None
    figures += [deviation] if deviation else []
    tags = next((figure.tags for figure in figures if figure.metric == "tgs"), {})
    # Tags that all figures of a table share are said once.
    figures = [replace(figure, tags={**tags, **figure.tags}) for figure in figures]
    doubts = sum(doubt.case == case.name for doubt in result.doubts)
    leads = [f"{count_of(doubts, 'doubt')} about this case (†): see Doubts."] if doubts else []
    leads += [_GENERATED] if _is_finetuning(case) and tags.get("weights") == "generated" else []
    curve = card.curves.get(case.name) if card else None
    shown = replace(case, curves=[*case.curves, curve]) if curve else case
    tables = [figure_table(f"Figures of {case.name}", figures)] if figures else []
    return Part(case.name, " ".join(leads), case_charts(shown), tables)
