"""The page in a real browser: light and dark, wide and narrow, on paper, and with hostile text in every field."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from assay.report.html import render_html
from assay.rundir import Status
from assay.scoring.result import CaseResult, Curve, Doubt, Figure, RunResult
from tests.report_sample import sample_result

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)>{{ 7*7 }}\x1b[31mred\x1b[0m\x00\x07\ud800"
    "\"'&|`\u202e](javascript:alert(1))" + "A" * 5000
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = shutil.which("chromium")
        assert found, "chromium is missing: install it, the page must be tested"
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page, and everything that went wrong while it was open."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())


def write(tmp_path: Path, result: RunResult) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_html(result), encoding="utf-8")
    return path


def hostile_result() -> RunResult:
    """The sample with hostile text wherever text from outside can stand."""
    sample = sample_result()
    cases = [_hostile_case(case) for case in sample.cases[1:4]]  # the first would only repeat the second
    document = {
        "suite": {"name": HOSTILE, "description": HOSTILE},
        "created": HOSTILE,
        "host": {"name": HOSTILE, HOSTILE: HOSTILE, "memory_bytes": "much"},
        "software": {HOSTILE: HOSTILE},
        "environment": {"NCCL_" + HOSTILE: HOSTILE},
        "code": {"version": HOSTILE, "revision": HOSTILE},
    }
    return replace(
        sample,
        path=HOSTILE,
        document=document,
        cases=cases,
        ceilings=[replace(figure, unit=HOSTILE, tags={HOSTILE: HOSTILE}) for figure in sample.ceilings],
        doubts=[Doubt(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
    )


def _hostile_case(case: CaseResult) -> CaseResult:
    status = replace(case.status, reason=HOSTILE, advice=HOSTILE, phase=HOSTILE) if case.status else None
    figures = [replace(figure, share_of=HOSTILE, reason=HOSTILE, tags=_hostile_tags(figure)) for figure in case.figures]
    curves = [replace(curve, tags={**curve.tags, HOSTILE: HOSTILE}) for curve in case.curves]
    curves.append(Curve(HOSTILE, HOSTILE, np.array([1.0, 2.0])))
    return replace(
        case,
        name=case.name + HOSTILE,
        script=HOSTILE,
        options={HOSTILE: HOSTILE},
        about={HOSTILE: HOSTILE},
        status=status,
        figures=[*figures, Figure(HOSTILE, HOSTILE, None, {}, reason=HOSTILE)],
        curves=curves,
    )


def _hostile_tags(figure: Figure) -> dict[str, object]:
    tags = dict(figure.tags)
    return {**tags, "op": f"{tags['op']}{HOSTILE}", "backend": HOSTILE} if "op" in tags else tags


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(("make", "schemes"), [(sample_result, ("light", "dark")), (hostile_result, ("light",))])
def test_page_opens_quietly_and_never_scrolls_sideways(
    browser: Browser, tmp_path: Path, width: int, make: Callable[[], RunResult], schemes: tuple[str, ...]
) -> None:
    path = write(tmp_path, make())
    for scheme in schemes:
        opened = Opened(browser, path, width, scheme)
        assert opened.complaints == []
        assert opened.requests == [path.as_uri()]
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        opened.page.close()


def test_hostile_text_is_shown_and_not_obeyed(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, write(tmp_path, hostile_result()), 1280, "light")
    page = opened.page
    assert page.evaluate("document.querySelectorAll('script, img, iframe, object, [onerror]').length") == 0
    assert "owned" in page.title()  # as words of the suite's name
    assert page.title().startswith("Benchmark report: <script>")
    text = page.inner_text("body")
    assert "<script>document.title='owned'</script>" in text
    assert "{{ 7*7 }}red\\x00\\x07\\ud800" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    page.close()


def test_headings_descend_one_at_a_time_and_tables_have_headers(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, write(tmp_path, sample_result()), 1280, "light").page
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption && t.tHead)")
    assert page.evaluate("[...document.querySelectorAll('thead th')].every(h => h.scope == 'col')")
    assert page.evaluate("[...document.querySelectorAll('tbody tr')].every(r => r.cells[0].scope == 'row')")
    columns = "[...document.querySelectorAll('table')].every(t => [...t.rows].every(r => r.cells.length == t.rows[0].cells.length))"
    assert page.evaluate(columns)
    targets = page.evaluate(
        "[...document.querySelectorAll('a')].every(a => document.querySelector(a.getAttribute('href')))"
    )
    assert targets
    identities = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(identities) == len(set(identities))
    page.close()


def test_every_chart_has_axis_titles_hover_texts_and_a_description(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, write(tmp_path, sample_result()), 1280, "light").page
    charts = page.query_selector_all("svg")
    # Collectives; the model of each sweep; loss, step time, gradient norm, learning rate.
    assert len(charts) == 6 + 8 + 4
    for chart in charts:
        assert chart.get_attribute("role") == "img"
        assert len(chart.query_selector_all(".heading")) == 2
        assert len(chart.query_selector_all("g title, rect title")) > 3
        assert (chart.query_selector("desc") or chart).text_content()
    words = page.evaluate("[...document.querySelectorAll('svg .heading')].map(t => t.textContent)")
    assert words.count("busbw (GB/s)") == 6
    assert words.count("message size (bytes, log₂ scale)") == 6 + 8
    assert "step time (ms)" in words
    inside = """[...document.querySelectorAll('svg')].every(svg => [...svg.querySelectorAll('text')].every(t => {
        const a = svg.getBoundingClientRect(), b = t.getBoundingClientRect();
        return b.left >= a.left - 1 && b.right <= a.right + 1 && b.bottom <= a.bottom + 2; }))"""
    assert page.evaluate(inside)
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate(inside)
    page.close()


def test_dark_and_print_change_the_colours(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, write(tmp_path, sample_result()), 1280, "light").page
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) != light
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(paper) == light
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 less its margins
    wide = page.evaluate(
        "Math.max(...[...document.querySelectorAll('table, svg')].map(e => e.getBoundingClientRect().right))"
    )
    assert wide <= 688
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_verdict_scores_and_reasons_stand_where_they_are_looked_for(browser: Browser, tmp_path: Path) -> None:
    page = Opened(browser, write(tmp_path, sample_result()), 1280, "light").page
    top = page.inner_text(".verdict")
    for words in (
        "3 of 5 cases passed, 1 failed, 1 not finished.",
        "the loss became NaN at step 17",
        "Lower --learning-rate",
        "3 doubts about the figures",
        "0.00446",
    ):
        assert words in top
    assert "out of memory at 256 MiB" in page.inner_text("#communication")
    assert "the device does not report its peak memory" in page.inner_text("#training")
    assert "NA: not submitted, counts 0" in page.inner_text("#scores")
    assert page.inner_text("#results").count("all_reduce busbw, 64 MiB") == 2
    page.close()


def test_a_clean_unscored_run_says_so() -> None:
    page = render_html(sample_result(troubled=False, scored=False))
    assert "All 3 cases passed." in page
    assert "No doubts." in page
    assert "this run was not held against a baseline" in page


def test_a_skipped_case_is_told_but_is_no_failure() -> None:
    sample = sample_result(troubled=False)
    skipped = replace(sample.cases[0], name="mpi", status=Status("skipped", "launch", None, 0.0, "mpi4py is missing"))
    page = render_html(replace(sample, cases=[*sample.cases, skipped]))
    assert "3 of 4 cases passed, 1 skipped." in page
    assert "mpi4py is missing" in page
    assert 'class="verdict good"' in page


def test_an_empty_run_renders() -> None:
    page = render_html(RunResult("runs/x", {}, [], [], []))
    assert "No case was run." in page
    assert "Not recorded." in page


def test_page_is_self_contained_and_small() -> None:
    page = render_html(sample_result())
    assert not re.search(r"<script|<iframe|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page)
    assert len(page.encode()) < 400_000


def test_long_curves_keep_the_page_below_two_megabytes() -> None:
    sample = sample_result()
    random = np.random.default_rng(5)
    training = sample.cases[2]
    many = [Curve(f"curve_{number}", "1", random.normal(0, 1, 100_000), np.arange(100_000)) for number in range(8)]
    result = replace(sample, cases=[replace(training, name=f"case-{n}", curves=many[:4]) for n in range(6)])
    assert len(render_html(result).encode()) < 2_000_000


def test_the_same_run_gives_the_same_page() -> None:
    assert render_html(sample_result()) == render_html(sample_result())


def test_colours_meet_the_contrast_of_wcag_aa() -> None:
    style = (Path(__file__).parents[1] / "assay/report/report.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("prefers-color-scheme: dark")
    )
    for colours in (light, dark):
        for name, colour in colours.items():
            if name not in ("paper", "rule", "shade"):
                assert _contrast(colour, colours["paper"]) >= 4.5, name
                assert _contrast(colour, colours["shade"]) >= (4.5 if name in ("ink", "quiet") else 3), name


def _contrast(one: str, other: str) -> float:
    lights = sorted(_luminance(colour) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
