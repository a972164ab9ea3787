"""A checkup on one screen: 24 lines of 100 columns, whatever was found."""

from textwrap import wrap

from rich.text import Text

from assay.doctor.checkup import Checkup, Verdict
from assay.doctor.finding import Finding, State
from assay.report.quantities import count_of
from assay.report.text import line
from assay.units import format_duration

WIDTH, LINES = 100, 24
_COLOURS: dict[State, str] = {"bad": "red", "warn": "yellow", "unknown": "dim", "good": "green"}
_VERDICTS: dict[Verdict, str] = {"fit": "bold green", "fit with doubts": "bold yellow", "unfit": "bold red"}
_INDENT = 5  # columns of `bad  ` and `warn `
_MOST = 400  # characters of what was found; names of processes and errors of others end up here
_VALUE = 60  # characters of what was found good
# What a reader wants to know of a machine even where nothing is wrong with it.
_SHOWN = (
    "other load", "stolen time", "frequency governor", "cores", "clock source", "memory", "shared memory", "open files",
    "processes", "locked memory", "device users", "torch",
)  # fmt: skip

Line = tuple[str, str]  # text without markup, style


def render(checkup: Checkup) -> Text:
    """The screen, for `rich.console.Console.print(…, soft_wrap=True)`; `.plain` holds it without style."""
    head = [(text, _VERDICTS[checkup.verdict]) for text in _fitting(line(checkup.sentence, 4000), 3)]
    middle = _listed(checkup, "unknown", 2) + _noise(checkup)
    where = f" on {line(checkup.device, 60)}" if checkup.device else ""
    foot = [(f"{count_of(len(checkup.findings), 'check')} in {format_duration(checkup.seconds)}{where}", "dim")]
    troubles = [finding for finding in checkup.findings if finding.state in ("bad", "warn")]
    room = LINES - len(head) - len(middle) - len(foot)
    names = _listed(checkup, "good", 3)
    told = _told(troubles, room - len(names))
    values = _valued([finding for finding in checkup.findings if finding.state == "good"])
    good = values if len(values) <= room - len(told) else names
    text = Text()
    for content, style in [*head, *told, *middle, *good, *foot]:
        text.append(f"{content}\n", style=style)
    text.rstrip()
    return text


def _told(troubles: list[Finding], room: int) -> list[Line]:
    """Troubles in full where they fit, else cut to a line for each part, else the first ones only."""
    full = [row for finding in troubles for row in _rows(finding, None)]
    if len(full) <= room:
        return full
    short = [_rows(finding, 1) for finding in troubles]
    shown: list[Line] = []
    for place, rows in enumerate(short):
        rest = len(short) - place
        if len(shown) + len(rows) > room - (rest > 1):
            names = ", ".join(_name(finding) for finding in troubles[place:])
            return [*shown, (_cut(f"and {count_of(rest, 'more finding')}: {names}"), "yellow")]
        shown += rows
    return shown


def _rows(finding: Finding, most: int | None) -> list[Line]:
    """What was found and, beneath, what to do; `most` lines of each."""
    blank = " " * _INDENT
    found = wrap(f"{_name(finding)}: {line(finding.found, _MOST)}", WIDTH - _INDENT)
    advice = wrap(f"→ {line(finding.advice, _MOST)}", WIDTH - _INDENT) if finding.advice else []
    if most is not None and len(found) > most:
        found = [_cut(" ".join(found), WIDTH - _INDENT)]
    if most is not None and len(advice) > most:
        advice = [_cut(" ".join(advice), WIDTH - _INDENT)]
    marked = [f"{finding.state if place == 0 else '':<{_INDENT}}{row}" for place, row in enumerate(found)]
    return [(row, _COLOURS[finding.state]) for row in marked] + [(f"{blank}{row}", "") for row in advice]


def _valued(good: list[Finding]) -> list[Line]:
    """What was found by those checks that a reader wants to see, and the names of the others."""
    shown = sorted((one for one in good if one.check in _SHOWN), key=lambda one: _SHOWN.index(one.check))
    told = "; ".join(f"{_name(one)}: {_cut(line(one.found, _MOST), _VALUE)}" for one in shown)
    others = ", ".join(_name(one) for one in good if one.check not in _SHOWN)
    rows = wrap(told, WIDTH - _INDENT) + (wrap(f"also: {others}", WIDTH - _INDENT) if others else [])
    return [(f"{'good' if place == 0 else '':<{_INDENT}}{row}", _COLOURS["good"]) for place, row in enumerate(rows)]


def _listed(checkup: Checkup, state: State, most: int) -> list[Line]:
    """All checks of a state by their names, in so many lines at most."""
    names = [_name(finding) for finding in checkup.findings if finding.state == state]
    rows = _fitting(f"{state}: {', '.join(names)}", most) if names else []
    return [(row, _COLOURS[state]) for row in rows]


def _noise(checkup: Checkup) -> list[Line]:
    """B/A of every pair, by kind of work."""
    width = max((len(noise.work) for noise in checkup.noises), default=0)
    return [
        (f"A/A {noise.work:<{width}}  noise {noise.value:7.1%}  B/A {' '.join(f'{r:.3f}' for r in noise.ratios)}", "")
        for noise in checkup.noises
    ]


def _name(finding: Finding) -> str:
    return line(finding.check, 40)


def _fitting(text: str, most: int) -> list[str]:
    rows = wrap(text, WIDTH)
    return rows if len(rows) <= most else [*rows[: most - 1], _cut(" ".join(rows[most - 1 :]))]


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 2].rsplit(' ', 1)[0]} …"
