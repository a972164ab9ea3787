"""A run folder's results on paper: scored, as HTML and Markdown in the folder."""

from dataclasses import replace
from pathlib import Path

from assay.errors import RunFailed
from assay.report.html import render_html
from assay.report.markdown import render_markdown
from assay.scoring.baseline import load_baseline, load_profile
from assay.scoring.datasheet import PEAK_UNITS, find_datasheet, load_datasheets, peak
from assay.scoring.reading import read_run
from assay.scoring.result import RunResult
from assay.scoring.score import score_run
from assay.scoring.specifications import SCRIPT, parameter_rows
from assay.scoring.training import with_printed_peaks

DEFAULT_PROFILE = "local"


def evaluate(
    path: Path, profile: str | None = None, baseline: str | None = None, datasheets: Path | None = None
) -> RunResult:
    """Read and score a run folder. Without `profile`, the suite's own is used; without `baseline`, the profile's.

    datasheets: a file of products whose printed peaks are shown, instead of the shipped one. Raises BadInput if the
    folder or a file cannot be used.
    """
    sheets = load_datasheets(datasheets) if datasheets else None
    result = read_run(path)
    result = replace(result, cases=with_printed_peaks(result.cases, sheets))
    chosen = load_profile(profile or result.document.get("suite", {}).get("profile") or DEFAULT_PROFILE)
    against = baseline or chosen.baseline
    standard = load_baseline(against) if against else None
    sheet = next((found for name in _device_names(result) if (found := find_datasheet(name, sheets))), None)
    return replace(
        result,
        scorecard=score_run(result, chosen, standard),
        parameters=parameter_rows(
            result.cases,
            standard.specifications if standard else {},
            {key: value for key in PEAK_UNITS if (value := peak(sheet, key)) is not None} if sheet else {},
        ),
        datasheet=" ".join(filter(None, (sheet.name + ":", f"{sheet.source}, {sheet.date}.", sheet.note)))
        if sheet
        else None,
    )


def _device_names(result: RunResult) -> list[str]:
    return [str(case.about["device_name"]) for case in result.cases if case.script == SCRIPT and case.about]


def write_report(result: RunResult, folder: Path) -> Path:
    """Write report.html and report.md into `folder`; the HTML's path. Raises RunFailed if that cannot be written."""
    for name, text in (("report.md", render_markdown(result)), ("report.html", render_html(result))):
        path, temporary = folder / name, folder / f".{name}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8", errors="replace")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunFailed(
                f"{path}: {(error.strerror or str(error)).lower()}; make room, or give another folder: assay report {result.path} --out FOLDER"
            ) from error
    return folder / "report.html"
