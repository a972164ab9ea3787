"""The chapter on links: the verdict, heat maps of all pairs, the slowest of them, and what halves carry."""

from collections.abc import Iterable, Sequence

import numpy as np

from assay.links.bisection import Crossing, slower_half
from assay.links.matrix import BOTH_WAYS, Matrix, relative_speed
from assay.links.survey import Survey
from assay.links.verdict import Verdict, culprit, factor, half, sentences
from assay.report.cells import Cell, Chapter, Column, Part, Table, Tone
from assay.report.heatmap import HeatMap
from assay.report.quantities import count_of, estimate_texts, number, quantity, size
from assay.report.text import line

_SLOWEST = 12  # pairs of one size and way that the table shows
_LEAD = (
    "Every pair was timed in the rounds of a tournament, several pairs at once. What was slow in every pass was measured "
    "again alone, by turns with healthy pairs, before it was named."
)
_BISECTION = (
    "One half sends to the other, all pairs at once, one direction after the other. The share is of the rates that the "
    "same pairs reach alone. A half is slower if it sends a tenth less than the other, with 95 % confidence over the passes."
)


def links_chapter(cases: Iterable[tuple[str, Survey]]) -> Chapter:
    """The chapter; without a lead and parts where no case measured links. cases: each case's name and what it found."""
    parts = [part for case, found in cases for part in _case(case, found)]
    return Chapter("links", "Links", _LEAD if parts else "", parts)


def _case(case: str, found: Survey) -> list[Part]:
    told = ". ".join(text[:1].upper() + text[1:] for text in sentences(found.verdict))
    maps = [_map(measured, found.matrices) for measured in found.matrices if np.isfinite(measured.times).any()]
    tables = [_findings(case, found.verdict)] if found.verdict.findings else []
    slowest = [_slowest(measured) for measured in found.matrices]
    parts = [
        Part(f"Who is slow, case {line(case, 80)}", f"{told}.", maps, tables),
        Part("Slowest pairs", tables=[table for table in slowest if table.rows]),
    ]
    if found.crossings:
        parts.append(Part("Bisection", _BISECTION, tables=[_bisection(case, found.crossings)]))
    return parts


def _title(measured: Matrix, several: bool = False) -> str:
    what = "latency" if measured.is_latency else "rate"
    lane = f", ranks {measured.ranks[0]}, {measured.ranks[1]}, …" if several else ""
    ways = "both ways at once" if measured.ways == BOTH_WAYS else "one way"
    return f"{what.capitalize()} of all pairs, {size(measured.bytes)}, {ways}{lane}"


def _values(measured: Matrix) -> tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return ("s", measured.latencies) if measured.is_latency else ("B/s", measured.rates)


def _name(measured: Matrix, end: int) -> str:
    return f"rank {measured.ranks[end]} on {line(measured.hosts[end], 60)}"


def _map(measured: Matrix, everyone: Sequence[Matrix]) -> HeatMap:
    unit, values = _values(measured)
    ends = range(len(measured.ranks))
    return HeatMap(
        title=_title(measured, len({one.ranks for one in everyone}) > 1),
        ends=[str(rank) for rank in measured.ranks],
        names=[_name(measured, end) for end in ends],
        values=values,
        shares=relative_speed(measured, measured.times),
        unit=unit,
    )


def _findings(case: str, verdict: Verdict) -> Table:
    columns = [
        Column("Suspect"),
        Column("What"),
        Column("Among all", numeric=True),
        Column("Alone", numeric=True),
        Column("Named"),
    ]
    rows = []
    for finding in verdict.findings:
        suspect = finding.suspect
        direction = f", {suspect.ranks[0]} → {suspect.ranks[1]}" if suspect.is_link else f", {suspect.does}"
        named = finding.confirmed and bool(suspect.ranks)
        both = ", both ways at once" if suspect.ways == BOTH_WAYS else ""
        tone: Tone = "bad" if finding.confirmed else "quiet"
        alone = Cell(factor(finding.ratio)) if finding.ratio else Cell("NA", finding.unknown, "quiet")
        rows.append(
            [
                Cell(line(culprit(suspect), 200), "", tone),
                Cell(size(suspect.bytes) + (direction if suspect.ranks else "") + both),
                Cell(number(suspect.ratio)),
                alone,
                Cell("yes" if named else "no", "", tone),
            ]
        )
    caption = f"Suspects of case {line(case, 80)}: speed as a share of that of healthy pairs"
    return Table(caption, columns, rows, captioned=True)


def _slowest(measured: Matrix) -> Table:
    unit, values = _values(measured)
    share = relative_speed(measured, measured.times)
    pairs = sorted(map(tuple, np.argwhere(measured.pairs).tolist()), key=lambda pair: float(share[pair]))
    columns = [
        Column("From"),
        Column("To"),
        Column("Latency" if unit == "s" else "Rate", numeric=True),
        Column("Share of the usual speed", numeric=True),
    ]
    rows = [
        [
            Cell(_name(measured, pair[0])),
            Cell(_name(measured, pair[1])),
            Cell(quantity(float(values[pair]), unit)),
            Cell(number(float(share[pair]))),
        ]
        for pair in pairs[:_SLOWEST]
    ]
    shown = f"the slowest {len(rows)} of {count_of(len(pairs), 'pair')}" if len(pairs) > len(rows) else "all pairs"
    return Table(f"{_title(measured)}: {shown}", columns, rows, captioned=True)


def _bisection(case: str, crossings: Sequence[tuple[Crossing, Crossing]]) -> Table:
    columns = [
        Column("Sends"),
        Column("Receives"),
        Column("Pairs", numeric=True),
        Column("Rate, all at once", numeric=True),
        Column("Share of alone", numeric=True),
        Column("Slower"),
    ]
    rows = []
    for both in crossings:
        slow = slower_half(*both)
        for one in both:
            value, interval = estimate_texts(one.rate, "B/s")
            other = both[1] if one is both[0] else both[0]
            less = f"{number(one.rate.value / other.rate.value)} of the other direction" if one is slow else ""
            rows.append(
                [
                    Cell(line(half(one.senders), 300)),
                    Cell(line(half(one.receivers), 300)),
                    Cell(f"{one.pairs:,}"),
                    Cell(value, interval),
                    Cell("NA", "", "quiet") if one.of_alone is None else Cell(number(one.of_alone)),
                    Cell("this half" if less else "", less, "bad" if less else ""),
                ]
            )
    caption = f"Bisection of case {line(case, 80)}, {size(crossings[0][0].bytes)}"
    return Table(caption, columns, rows, captioned=True)
