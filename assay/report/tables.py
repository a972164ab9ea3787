"""A run as chapters of tables and charts: the one selection of facts that HTML and Markdown both show."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.report.cells import Cell, Chapter, Column, Part, Table, Tone, figure_table, ranks, share_cell
from assay.report.communication import communication_chapter
from assay.report.fitness import fitness_part
from assay.report.latency import latency_parts
from assay.report.links import links_chapter
from assay.report.measurements import other_chapter, sensor_chapter
from assay.report.overlap import overlap_part
from assay.report.quantities import count_of, number, quantity
from assay.report.roofline import roofline_part
from assay.report.sections import section_part
from assay.report.specifications import specification_chapter
from assay.report.text import line
from assay.report.training import finetuning_chapter, sections_of, training_chapter
from assay.report.verdict import KeyFigure, key_figures, score_text, state_of
from assay.scoring.result import Doubt, RunResult
from assay.units import format_duration

_HOST = {
    "name": "Host",
    "cpu": "Processor",
    "cores_physical": "Cores, physical",
    "cores_logical": "Cores, logical",
    "cores_usable": "Cores usable by the run",
    "memory_bytes": "Memory",
    "os": "Operating system",
    "kernel": "Kernel",
    "architecture": "Architecture",
    "gcc": "C compiler",
    "load_1min": "Load at the start (1 min mean)",
}
_METHOD = (
    "p50, p95, p99: the value below which 50, 95, 99 % of the samples lie; p50 is the median. Intervals hold the "
    "median with 95 % confidence: they are order statistics, as many as there are independent samples worth of "
    "them, and assume no distribution. A figure without an interval had too few samples for "
    "one, or is a single reading. Rates are derived from one time and never averaged. busbw is algbw times the "
    "collective's factor, so that it can be held against the speed of the link. A doubt is a reason to distrust a "
    "figure, from a closed list."
)
_LAYOUT = """\
run.json                        resolved suite, code, versions, environment, machine
doctor.json                     whether the machine was fit to be measured
cases/<case>/case.json          the case as it was run
cases/<case>/attempt-<k>/       one folder for each attempt, never overwritten
    command.json                argv and environment given
    rank-00000.jsonl            raw samples of rank 0: a header line, then one block a line
    stdout.log  stderr.log      what the ranks printed
    status.json                 how the attempt ended, and what to do about it"""
_RULE = "NA: not submitted, counts 0 where anything of its part has a score. 0: failed, without log or not accepted."


def chapters(result: RunResult) -> list[Chapter]:
    """The whole report below the verdict, in reading order."""
    everything = [
        _results(result),
        specification_chapter(result),
        _machine(result),
        _ceilings(result),
        _communication(result),
        links_chapter([(case.name, case.survey) for case in result.cases if case.survey]),
        training_chapter(result),
        finetuning_chapter(result),
        other_chapter(result),
        sensor_chapter(result),
        _scores(result),
        _doubts(result),
        _cases(result),
        _appendix(result),
    ]
    return [chapter for chapter in everything if chapter.lead or chapter.parts]


def title(result: RunResult) -> str:
    """The report's title: the suite's name where it is known."""
    name = section_of(result.document, "suite").get("name")
    return f"Benchmark report: {line(name, 120)}" if name else "Benchmark report"


def description(result: RunResult) -> str:
    """What the suite says about itself."""
    return str(section_of(result.document, "suite").get("description") or "")


def subtitle(result: RunResult) -> list[tuple[str, str]]:
    """What identifies the run: names and values."""
    code = section_of(result.document, "code")
    version = str(code.get("version") or "")
    revision = str(code.get("revision") or "")[:12]
    changed = ", with uncommitted changes" if code.get("diff") else ""
    facts = {
        "Run": result.path,
        "Made": result.document.get("created"),
        "Host": section_of(result.document, "host").get("name"),
        "assay": f"{version}{f' ({revision}{changed})' if revision else ''}" if version else revision,
    }
    return [(key, str(value)) for key, value in facts.items() if value]


def section_of(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping inside run.json; an empty one where it is missing or something else."""
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def _results(result: RunResult) -> Chapter:
    found = key_figures(result)
    lead = "Of every collective the message size with the highest busbw. Beneath a value: its interval. †: doubted, see Doubts."
    parts = [Part(tables=[_key_table("Key results", found)])] if found else []
    return Chapter("results", "Key results", lead if any(map(_is_of_busbw, found)) else "", parts)


def _is_of_busbw(item: KeyFigure) -> bool:
    return item.figure is not None and item.figure.metric == "busbw"


def _key_table(caption: str, items: Sequence[KeyFigure]) -> Table:
    columns = [Column("Figure, case"), Column("Value", numeric=True), Column("Share of ceiling", numeric=True)]
    names = [Cell(item.what, item.case) if item.figure else Cell(item.case, item.what) for item in items]
    rows = [[name, item.cell, share_cell(item.figure)] for name, item in zip(names, items, strict=True)]
    return Table(caption, columns, rows)


def _machine(result: RunResult) -> Chapter:
    host, software = section_of(result.document, "host"), section_of(result.document, "software")
    machine = [
        [Cell(_HOST.get(key, key)), _host_cell(key, host[key])]
        for key in [*_HOST, *sorted(set(host) - set(_HOST))]
        if key in host
    ]
    versions = [[Cell(name), _known(version, "not installed")] for name, version in software.items()]
    parts = [
        Part(
            heading,
            "" if rows else "Not recorded.",
            tables=[Table(heading, (Column(first), Column(second)), rows)] if rows else [],
        )
        for heading, first, second, rows in (
            ("Machine", "Property", "Value", machine),
            ("Software", "Package", "Version", versions),
        )
    ]
    fitness = [part for checkup in result.checkups if (part := fitness_part(checkup))]
    return Chapter("machine", "Machine and software", "", [*fitness, *parts])


def _host_cell(key: str, value: object) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(quantity(value, "B") if key == "memory_bytes" else number(value))
    return _known(value, "unknown to the system")


def _known(value: object, reason: str) -> Cell:
    return Cell("NA", reason, "quiet") if value is None else Cell(str(value))


def _ceilings(result: RunResult) -> Chapter:
    lead = (
        "What this machine was measured to be capable of: the bounds that shares of a ceiling refer to."
        if result.ceilings
        else "No ceiling was measured in this run, so no figure is shown as a share of one."
    )
    reused = [case for case in result.cases if case.status and case.status.phase == "reused"]
    lead += "".join(f" {case.name}: {case.status.reason}." for case in reused if case.status)
    parts = [Part(tables=[figure_table("Measured ceilings", result.ceilings)])] if result.ceilings else []
    parts += roofline_part(result.rooflines)
    return Chapter("ceilings", "Ceilings of this machine", lead, parts)


def _scores(result: RunResult) -> Chapter:
    card = result.scorecard
    shares = [item for item in key_figures(result) if item.figure and item.figure.share is not None]
    unscored = Part("Shares of the measured ceilings", tables=[_key_table("Shares of the measured ceilings", shares)])
    if card is None:
        lead = "NA: this run was not held against a baseline. Figures are shown as shares of the measured ceilings."
        return Chapter("scores", "Scores", lead, [unscored] if shares else [])
    source = f" ({card.baseline_source})" if card.baseline_source else ""
    lead = f"Profile {card.profile}, baseline {card.baseline}{source}. {_RULE}"
    elsewhere = {
        section.key: name
        for anchor, name in (("training", "Training"), ("finetuning", "Fine-tuning"))
        for section in sections_of(result, anchor)
    }
    parts = [
        Part(section.title, f"Score {score_text(section.score)}: see chapter {elsewhere[section.key]}.")
        if section.key in elsewhere
        else section_part(section)
        for section in card.sections
    ]
    if shares and all(section.score is None for section in card.sections):
        parts.append(unscored)
    return Chapter("scores", "Scores", lead, parts)


def _doubts(result: RunResult) -> Chapter:
    if not result.doubts:
        return Chapter("doubts", "Doubts", "No doubts.")
    groups: dict[tuple[str, str], list[Doubt]] = {}
    for doubt in result.doubts:
        groups.setdefault((doubt.kind, doubt.advice), []).append(doubt)
    lead = "Reasons to distrust a figure. Under each heading: what to do about it."
    return Chapter("doubts", "Doubts", lead, [_doubt_part(*group, doubts) for group, doubts in groups.items()])


def _doubt_part(kind: str, advice: str, doubts: Sequence[Doubt]) -> Part:
    heading = kind.replace("_", " ").capitalize()
    rows = [[Cell(doubt.case), Cell(doubt.subject), Cell(doubt.message)] for doubt in doubts]
    table = Table(heading, (Column("Case"), Column("About"), Column("Doubt")), rows)
    return Part(f"{heading}, {count_of(len(doubts), 'time')}" if len(doubts) > 1 else heading, advice, tables=[table])


def _cases(result: RunResult) -> Chapter:
    columns = [
        Column("Case"),
        Column("Ran"),
        Column("Status"),
        Column("Attempts", numeric=True),
        Column("Time", numeric=True),
    ]
    rows = []
    for case in result.cases:
        status = case.status
        state = Cell(state_of(case), "", "good" if status and status.state == "passed" else "bad")
        if status and status.state != "passed":
            code = f"exit code {status.exit_code}" if status.exit_code is not None else ""
            words = ", ".join(word for word in (f"in phase {status.phase}" if status.phase else "", code) if word)
            tone: Tone = "quiet" if status.state == "skipped" else "bad"
            state = Cell(status.state, ": ".join(word for word in (words, status.reason or "") if word), tone)
        time = Cell(format_duration(status.seconds)) if status else Cell("NA", "has not ended", "quiet")
        ran = Cell(f"{case.script}, {ranks(case.world)}", _pairs(case.about))
        rows.append([Cell(case.name, _pairs(case.options)), ran, state, Cell(f"{case.attempts:,}"), time])
    parts = [Part(tables=[Table("All cases", columns, rows)])] if rows else []
    lead = count_of(len(rows), "case") + ", with the options and the device of each." if rows else "No case was run."
    return Chapter("cases", "All cases", lead, parts)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_plain(value)}" for key, value in values.items() if value not in (None, "", {}))


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _communication(result: RunResult) -> Chapter:
    """Sweeps over sizes, the model fitted to them, and what hides behind computation."""
    chapter = communication_chapter(result)
    beside = overlap_part(result)
    more = [*latency_parts(result), *([beside] if beside else [])]
    return replace(chapter, lead=chapter.lead if chapter.parts or not more else "", parts=[*chapter.parts, *more])


def _appendix(result: RunResult) -> Chapter:
    environment = section_of(result.document, "environment")
    rows = [[Cell(str(name)), Cell(str(value))] for name, value in environment.items()]
    unset = "Not recorded." if "imported" in result.document else "None of the variables that matter was set."
    table = Table("Environment variables", (Column("Variable"), Column("Value")), rows)
    parts = [
        Part("Method", _METHOD),
        Part("Environment", "" if rows else unset, tables=[table] if rows else []),
        Part("Raw records", f"Every figure is derived from these files of {result.path}:", code=_LAYOUT),
    ]
    return Chapter("appendix", "Appendix", "", parts)
