"""The report's part on whether the machine was fit to be measured: verdict, findings, A/A noise."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from assay.report.cells import Cell, Column, Part, Table, Tone
from assay.report.quantities import percent, quantity

FORMULA = """\
noise = max over the pairs of max(B/A, A/B) − 1, with A and B the seconds of the same work done twice
The smallest and largest of n ratios hold the median ratio with confidence 1 − 2·(1/2)ⁿ: 93.75 % for five pairs.
A difference below the noise cannot be decided on this machine with so many pairs."""

_TONES: Mapping[str, Tone] = {"good": "good", "bad": "bad", "unknown": "quiet"}
_MOST_RATIOS = 20
_NOTHING = Cell("–", "", "quiet")


def fitness_part(document: object) -> Part | None:
    """What `assay doctor` found, from the document that its Checkup writes; None if there is none.

    The document comes from a file: whatever in it is missing or foreign is left out, and the rest is shown.
    """
    if not isinstance(document, Mapping):
        return None
    findings = [item for item in _items(document.get("findings")) if _is_finding(item)]
    noises = [item for item in _items(document.get("noise")) if isinstance(item.get("work"), str)]
    verdict = _text(document, "sentence") or _text(document, "verdict")
    if not verdict and not findings and not noises:
        return None
    tables = [_findings_table(findings)] if findings else []
    tables += [_noise_table(noises)] if noises else []
    lead = " ".join(filter(None, (verdict or "No verdict was recorded.", _circumstances(document))))
    return Part("Fitness of the machine", lead, tables=tables, code=FORMULA if noises else "")


def _circumstances(document: Mapping[str, Any]) -> str:
    seconds, when, device = _number(document.get("seconds")), _text(document, "when"), _text(document, "device")
    words = [when, f"in {quantity(seconds, 's')}" if seconds is not None else "", f"on {device}" if device else ""]
    told = " ".join(filter(None, words))
    return f"Examined {told}." if told else ""


def _findings_table(findings: Sequence[Mapping[str, Any]]) -> Table:
    """Every finding that is not good in a row, and all the good ones in one, so that the others are seen."""
    columns = [Column("Check"), Column("State"), Column("Found"), Column("What to do")]
    rows = []
    for item in findings:
        if item["state"] == "good":
            continue
        state, advice = str(item["state"]), _text(item, "advice")
        rows.append(
            [
                Cell(str(item["check"])),
                Cell(state, "", _TONES.get(state, "")),
                Cell(_text(item, "found") or "–"),
                Cell(advice) if advice else _NOTHING,
            ]
        )
    good = [f"{item['check']}: {_text(item, 'found')}" for item in findings if item["state"] == "good"]
    if good:
        rows.append([Cell(f"{len(good)} others"), Cell("good", "", "good"), Cell("; ".join(good)), _NOTHING])
    return Table("Findings", columns, rows)


def _noise_table(noises: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("Work"), Column("Noise", numeric=True), Column("B/A of each pair", numeric=True), Column("Trend")]
    rows = []
    for item in noises:
        value, drift = _number(item.get("noise")), _text(item, "drift")
        ratios = [number for raw in _list(item.get("ratios")) if (number := _number(raw)) is not None]
        shown = "  ".join(f"{ratio:.4f}" for ratio in ratios[:_MOST_RATIOS])
        rows.append(
            [
                Cell(str(item["work"])),
                Cell("NA", "not recorded", "quiet") if value is None else Cell(percent(value)),
                Cell(shown or "–"),
                Cell(f"B always {drift}" if drift else "none"),
            ]
        )
    return Table("A/A noise: the same work twice, in turn", columns, rows, captioned=True)


def _is_finding(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("check"), str) and isinstance(item.get("state"), str)


def _items(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _list(value) if isinstance(item, Mapping)]


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
