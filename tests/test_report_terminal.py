"""The terminal summary: short, plain in a log, unmoved by markup."""

import io
import subprocess
import sys
from dataclasses import replace

from rich.console import Console

from assay.report.terminal import summarise
from assay.scoring.result import CaseResult, RunResult
from tests.report_sample import sample_result
from tests.test_report_page import hostile_result


def logged(result: RunResult, report: str | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(summarise(result, report), soft_wrap=True)
    return out.getvalue()


def test_it_says_the_verdict_first_and_the_report_last() -> None:
    lines = logged(sample_result(), "runs/quick-1/report.html").splitlines()
    assert lines[0] == "3 of 5 cases passed, 1 failed, 1 not finished."
    assert "train-internlm failed: rank 3: the loss became NaN at step 17" in lines[1]
    assert lines[-1] == "Report: runs/quick-1/report.html"
    assert lines[-2].startswith("3 doubts about the figures: all_reduce, 1 KiB: The interval is ±6.1 % wide")
    assert any("tokens/s/device" in line and "[14,310, 14,505]" in line for line in lines)
    assert len(lines) <= 25


def test_a_clean_run_is_short() -> None:
    lines = logged(sample_result(troubled=False, scored=False)).splitlines()
    assert lines[0] == "All 3 cases passed."
    assert lines[-2:] == ["No doubts.", "Run: runs/quick-1"]


def test_many_cases_stay_on_one_screen() -> None:
    sample = sample_result()
    cases = [replace(sample.cases[1], name=f"comms-{number}") for number in range(60)]
    failed = [CaseResult(f"lost-{number}", "x.py", 1, {}, None, 1) for number in range(60)]
    text = logged(replace(sample, cases=[*cases, *failed]))
    assert "more cases: see the report" in text
    assert "more figures: see the report" in text
    assert len(text.splitlines()) < 60


def test_an_empty_run_is_said_to_be_empty() -> None:
    assert logged(RunResult("runs/x", {}, [], [], [])).splitlines() == ["No case was run.", "No doubts.", "Run: runs/x"]


def test_a_log_holds_no_escape_codes() -> None:
    text = logged(hostile_result(), "[bold]\x1b[31mreport[/bold]")
    assert "\x1b" not in text
    assert "[bold]report[/bold]" in text
    assert max(map(len, text.splitlines())) < 1200
    text.encode("utf-8")


def test_reports_are_written_without_torch() -> None:
    modules = "assay.report.html, assay.report.markdown, assay.report.terminal"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
