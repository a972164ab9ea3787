"""What a report is made of, before it becomes HTML or Markdown: chapters, parts, tables, cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from assay.report.charts import Chart
from assay.report.quantities import estimate_texts, percent
from assay.scoring.result import Figure

Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Cell:
    """One cell: its text and, smaller beneath it, what qualifies it (the interval, the reason of an NA)."""

    text: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    """A column's name and whether it holds numbers (aligned right)."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first cell names its row.

    caption: what the table shows; seen only if `captioned`, else read to those who cannot see the heading above.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    captioned: bool = False


@dataclass(frozen=True)
class Part:
    """A titled piece of a chapter; an empty title joins it to what stands above."""

    title: str = ""
    lead: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    code: str = ""


@dataclass(frozen=True)
class Chapter:
    """One heading of the report. anchor: its id in the page."""

    anchor: str
    title: str
    lead: str = ""
    parts: Sequence[Part] = field(default_factory=tuple)


DOUBTED = "†"

# The field's own words where they are not simply the metric's name.
_LABELS = {
    "batch_call_time": "time per call, back to back",
    "throughput_deepspeed": "throughput (DeepSpeed)",
    "alpha": "latency α",
    "bandwidth_asymptotic": "asymptotic busbw",
    "call_time_p50_random_order": "p50, random order",
    "tgs": "TGS",
    "mfu": "MFU",
    "mfu_datasheet": "MFU of the datasheet",
    "hfu": "HFU",
    "nsp_accuracy": "next-sentence accuracy",
    "nsp_loss": "next-sentence loss",
    "loss_variance": "variance of the loss against the baseline",
    "base_weight_bytes": "base weights",
    "ppl": "PPL",
    "gemm_rate": "GEMM rate",
    "flops_per_token": "FLOPs per token",
}


def metric_label(metric: str) -> str:
    """The name of a metric for readers."""
    return _LABELS.get(metric, metric.replace("_", " "))


def tag_words(tags: Mapping[str, Any]) -> str:
    """Tags in a few words: `loaded together, bfloat16`. Values that explain themselves stand without their key."""
    words = []
    for key, value in tags.items():
        if value is None:
            continue
        if key in ("op", "dtype", "backend", "phase", "model"):
            words.append(str(value))
        elif key in ("world", "ranks"):
            words.append(ranks(value))
        else:
            words.append(f"{key} {value}")
    return ", ".join(words)


def ranks(count: object) -> str:
    """`8 ranks`, `1 rank`."""
    return f"{count} rank" if count == 1 else f"{count} ranks"


def figure_cell(figure: Figure | None) -> Cell:
    """The value with its unit, its interval beneath; NA with the reason where it is unknown."""
    if figure is None:
        return Cell("NA", "not recorded", "quiet")
    if figure.estimate is None:
        return Cell("NA", figure.reason or "no reason recorded", "quiet")
    value, interval = estimate_texts(figure.estimate, figure.unit, figure.metric)
    failed = figure.metric == "check_errors" and figure.estimate.value != 0
    # A sign, not the words: they would widen every column of a table in which many figures are doubted.
    return Cell(
        f"{value} {DOUBTED}" if figure.doubts else value, interval or figure.reason or "", "bad" if failed else ""
    )


def share_cell(figure: Figure | None) -> Cell:
    """The figure as a share of its ceiling, which is named beneath; empty where no ceiling applies."""
    if figure is None or (figure.share is None and figure.share_of is None):
        return Cell("–", "", "quiet")
    if figure.share is None:
        return Cell("NA", f"no {figure.share_of} was measured", "quiet")
    return Cell(percent(figure.share), f"of {figure.share_of}" if figure.share_of else "")


def figure_table(caption: str, figures: Sequence[Figure]) -> Table:
    """Any figures, one a row: value, share if any has a ceiling, number of samples, method.

    Tags that all figures share are said once, in the caption.
    """
    common = _common_tags(figures)
    shared = any(figure.share_of or figure.share is not None for figure in figures)
    share = [Column("Share of ceiling", numeric=True)] if shared else []
    columns = [Column("Figure"), Column("Value, interval", numeric=True), *share]
    columns += [Column("Samples", numeric=True), Column("How it is made")]
    rows = []
    for figure in figures:
        estimate = figure.estimate
        own = {key: value for key, value in figure.tags.items() if key not in common}
        name = Cell(metric_label(figure.metric), tag_words(own))
        samples = Cell(f"{estimate.samples:,}") if estimate else Cell("–", "", "quiet")
        method = Cell(estimate.method) if estimate else Cell("–", "", "quiet")
        shares = [share_cell(figure)] if shared else []
        rows.append([name, figure_cell(figure), *shares, samples, method])
    return Table(f"{caption}: {tag_words(common)}" if common else caption, columns, rows, captioned=bool(common))


def _common_tags(figures: Sequence[Figure]) -> dict[str, Any]:
    if len(figures) < 2:
        return {}
    first, *others = (figure.tags for figure in figures)
    return {key: value for key, value in first.items() if all(tags.get(key) == value for tags in others)}
