# ruff: noqa: A005 - this file is never run by path, so it hides no module from anybody
"""The report as one self-contained page: no script, no network, nothing but inline style and SVG."""

from importlib import resources
from itertools import count
from typing import Any

import jinja2
from markupsafe import Markup

from assay.report.charts import draw
from assay.report.tables import chapters, description, subtitle, title
from assay.report.text import clean
from assay.report.verdict import verdict
from assay.scoring.result import RunResult


def render_html(result: RunResult) -> str:
    """The page as text, to be written as UTF-8."""
    numbers = count(1)  # one id per chart, the same in every rendering of the same run
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("assay.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    style = (resources.files("assay.report") / "report.css").read_text(encoding="utf-8")
    page = environment.get_template("report.html.jinja")
    return page.render(
        title=title(result),
        description=description(result),
        facts=subtitle(result),
        verdict=verdict(result),
        chapters=chapters(result),
        draw=lambda chart: draw(chart, f"chart{next(numbers)}"),
        style=Markup(style),  # noqa: S704 - our own file
    )


def _harmless(value: Any) -> Any:
    # Every expression of the template passes here, so no name or log line can be forgotten.
    return value if isinstance(value, Markup) else clean(value)
