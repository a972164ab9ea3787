"""The report as GitHub Markdown: the same facts as the page, without its charts."""

import re

from assay.report.cells import Cell, Chapter, Part, Table
from assay.report.tables import chapters, description, subtitle, title
from assay.report.text import clean, line
from assay.report.verdict import verdict
from assay.scoring.result import RunResult

# What would start markup, a table cell, a mention or an entity.
_SPECIAL = re.compile(r"([\\`*\[\]<>#|~@&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_BLOCK = re.compile(r"^(\d*)(?=[-+=](?!\d)|\.(?:\s|$))")  # at the start: lists and underlined headings


def render_markdown(result: RunResult) -> str:
    """The whole report as text that ends with a newline."""
    top = verdict(result)
    blocks = [
        f"# {escape(title(result))}",
        escape(description(result)),
        f"**{escape(top.headline)}.** {escape(top.doubts)}.",
    ]
    blocks += [
        f"- **{escape(item.case)}** {escape(item.state)}: {escape(item.reason)}{f' – {escape(item.advice)}' if item.advice else ''}"
        for item in top.troubles
    ]
    if top.scores:
        blocks.append("Scores: " + ", ".join(f"{escape(name)} **{escape(score)}**" for name, score in top.scores) + ".")
    blocks.append("\n".join(f"- {escape(name)}: {escape(value)}" for name, value in subtitle(result)))
    for chapter in chapters(result):
        blocks += _chapter(chapter)
    return "\n\n".join(filter(None, blocks)) + "\n"


def escape(value: object) -> str:
    """Text on one line that shows as it stands wherever Markdown would have read markup."""
    text = _SPECIAL.sub(r"\\\1", line(value)).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")
    return _BLOCK.sub(r"\1\\", text)


def _chapter(chapter: Chapter) -> list[str]:
    blocks = [f"## {escape(chapter.title)}"]
    if chapter.lead:
        blocks.append(escape(chapter.lead))
    for part in chapter.parts:
        blocks += _part(part)
    return blocks


def _part(part: Part) -> list[str]:
    if not (part.lead or part.code or part.tables):
        return []  # charts only: their numbers stand in the tables
    blocks = [f"### {escape(part.title)}"] if part.title else []
    if part.lead:
        blocks.append(escape(part.lead))
    if part.code:
        blocks.append(_fenced(part.code))
    for table in part.tables:
        blocks += [f"*{escape(table.caption)}*"] if table.captioned else []
        blocks.append(_table(table))
    return blocks


def _fenced(code: str) -> str:
    text = clean(code)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _table(table: Table) -> str:
    head = [escape(column.title) for column in table.columns]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [head, rules, *([_cell(cell) for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f"{text}<br>{escape(cell.note)}" if cell.note else text
