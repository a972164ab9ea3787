"""The Markdown report: tables that parse, the page's facts, nothing that GitHub would take for markup."""

import re

import pytest

from assay.report.markdown import escape, render_markdown
from assay.report.tables import chapters
from assay.scoring.result import RunResult
from tests.report_sample import sample_result
from tests.test_report_page import hostile_result

_BAR = re.compile(r"(?<!\\)\|")


def tables(text: str) -> list[list[str]]:
    """Blocks of lines that begin with a bar."""
    found: list[list[str]] = []
    previous = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                found.append([])
            found[-1].append(line)
        previous = line
    return found


@pytest.mark.parametrize("result", [sample_result(), hostile_result()], ids=["sample", "hostile"])
def test_every_row_of_a_table_has_as_many_columns(result: RunResult) -> None:
    text = render_markdown(result)
    found = tables(text)
    assert len(found) == sum(len(part.tables) for chapter in chapters(result) for part in chapter.parts)
    for table in found:
        counts = {len(_BAR.findall(row)) for row in table}
        assert len(counts) == 1
        assert re.fullmatch(r"\|( -{3}:? \|)+", table[1])


def test_it_holds_the_facts_of_the_page() -> None:
    text = render_markdown(sample_result())
    for words in (
        "# Benchmark report: quick",
        "**3 of 5 cases passed, 1 failed, 1 not finished.**",
        "rank 3: the loss became NaN at step 17 – Lower --learning-rate",
        "| GEMM rate<br>loaded alone, 1 rank | 413 GFLOP/s<br>\\[408, 415\\] | 50 | best of 5 windows |",
        "NA<br>the device does not report its peak memory",
        "NA<br>out of memory at 256 MiB",
        "NA<br>not submitted, counts 0",
        "| OMP_NUM_THREADS | 2 |",
        "cases/<case>/attempt-<k>/",
    ):
        assert words in text
    assert text.endswith("\n")
    assert "\n\n\n" not in text


def test_hostile_text_is_escaped() -> None:
    text = render_markdown(hostile_result())
    outside_code = re.sub(r"(?s)^(`{3,})text\n.*?^\1$", "", text, flags=re.MULTILINE)
    assert "<script" not in outside_code
    assert "<img" not in outside_code
    assert set(re.findall(r"<[^>]*>", outside_code)) == {"<br>"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff\u202e]", text)
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a|b", "a\\|b"),
        ("*x* _y_ `z`", "\\*x\\* \\_y\\_ \\`z\\`"),
        ("[a](b)", "\\[a\\](b)"),
        ("all_reduce", "all_reduce"),
        ("# no", "\\# no"),
        ("- no", "\\- no"),
        ("1. no", "1\\. no"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("@someone #12", "\\@someone \\#12"),
        ("two\nlines", "two lines"),
        ("\\|", "\\\\\\|"),
    ],
)
def test_markup_is_shown_as_it_stands(raw: str, shown: str) -> None:
    assert escape(raw) == shown
