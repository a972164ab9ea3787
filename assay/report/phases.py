"""Where the time of training steps goes: a stacked bar and a table, the steps that took far longer, and slow ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from assay.report.axes import Axis, lay
from assay.report.canvas import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, Frame, axes, svg
from assay.report.cells import Cell, Column, Part, Table
from assay.report.quantities import count_of, estimate_texts, percent, quantity
from assay.report.text import line
from assay.scoring.result import StepStudy
from assay.scoring.steps import DEVIATIONS, MATERIAL

_MOST_BARS = 8
_LEAD = (
    "Median over ranks and sampled steps, with its interval. The device is waited for after every phase of a sampled step, so "
    "these are steps of their own behind the measured ones."
)


@dataclass(frozen=True)
class StackedBars:
    """Horizontal bars, each cut into parts. bars: label → part → length, in `axis.unit`; parts in the order drawn."""

    title: str
    axis: Axis
    parts: Sequence[str]
    bars: Mapping[str, Mapping[str, float]]

    def draw(self, ident: str) -> Markup:
        """The bars as one <svg>, with the names of the parts beneath."""
        shown = {label: parts for label, parts in self.bars.items() if all(map(math.isfinite, parts.values()))}
        longest = max((sum(parts.values()) for parts in shown.values()), default=0.0)
        nothing = lay(Axis("", "1", zero=True), [])
        frame = Frame(lay(self.axis, [0.0, longest] if shown else []), nothing, RIGHT)
        drawn = axes(frame)
        room = (HEIGHT - TOP - BOTTOM) / max(len(shown), 1)
        for row, (label, parts) in enumerate(shown.items()):
            top, tall = TOP + row * room + room * 0.15, min(room * 0.7, 34.0)
            text = Markup('<text class="tick-y" x="{}" y="{:.1f}">{}</text>')
            drawn.append(text.format(LEFT - 7, top + tall / 2 + 3.5, line(label, 9)))
            drawn += self._bar(label, parts, top, tall, frame)
        drawn += self._legend()
        words = [f"{label}: {self._words(parts)}" for label, parts in shown.items()]
        return svg(self.title, "; ".join(words) or "nothing to draw", drawn, [], ident)

    def _bar(self, label: str, parts: Mapping[str, float], top: float, tall: float, frame: Frame) -> list[Markup]:
        drawn, begin = [], 0.0
        for colour, name in enumerate(self.parts):
            end = begin + max(parts.get(name, 0.0), 0.0)
            left, right = frame.across(begin), frame.across(end)
            rect = Markup(
                '<g class="series-{}"><rect fill="currentColor" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{}</title></rect></g>"
            )
            words = f"{line(label, 40)}, {name}: {quantity(end - begin, self.axis.unit)}"
            drawn.append(rect.format(colour % 6, left, top, max(right - left - 0.6, 0.0), tall, words))
            begin = end
        return drawn

    def _legend(self) -> list[Markup]:
        drawn, left = [], float(LEFT)
        for colour, name in enumerate(self.parts):
            entry = Markup(
                '<g class="series-{}"><rect fill="currentColor" x="{:.1f}" y="5" width="9" height="9"/></g>'
                '<text class="note" x="{:.1f}" y="13">{}</text>'
            )
            drawn.append(entry.format(colour % 6, left, left + 13, name))
            left += 26 + 6.4 * len(name)
        return drawn

    def _words(self, parts: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {quantity(parts.get(name, 0.0), self.axis.unit)}" for name in self.parts)


def phases_part(case: str, study: StepStudy | None) -> Part | None:
    """The part of one case; None where steps were neither sampled nor out of the usual."""
    if study is None or not (study.phases or study.outliers):
        return None
    leads = [_LEAD, *_sum_told(study), *_slow_told(study)] if study.phases else []
    tables = [_phase_table(case, study)] if study.phases else []
    if study.outliers:
        leads.append(_outliers_told(study))
        tables.append(_outlier_table(case, study))
    elif study.phases:
        leads.append(f"No measured step exceeded {quantity(study.limit, 's')} ({_rule(study)}).")
    charts = [_bars(study)] if study.phases else []
    return Part(f"{case}: where the time goes", " ".join(leads), charts, tables)


def _sum_told(study: StepStudy) -> list[str]:
    if study.total is None:
        return []
    value, interval = estimate_texts(study.total, "s")
    ratio = percent(study.total.value / study.usual) if study.usual else "NA"
    return [
        f"The phases sum to {value}{f' {interval}' if interval else ''} in a sampled step, {ratio} of the median measured step "
        f"({quantity(study.usual, 's')}), each of the slowest rank."
    ]


def _slow_told(study: StepStudy) -> list[str]:
    slow = study.slow
    if slow is None:
        return [f"Whether a rank is slower than the others cannot be told: {study.slow_why}."] if study.slow_why else []
    return [
        f"Rank {slow.rank} on {line(slow.host, 60)} works {quantity(slow.excess, 's')} longer than the others in all "
        f"{slow.steps} sampled steps, most of it in {slow.phase}: every step waits for it."
    ]


def _phase_table(case: str, study: StepStudy) -> Table:
    whole = sum(estimate.value for estimate in study.phases.values())
    several = len(study.by_rank) > 1
    rows = []
    for phase, estimate in study.phases.items():
        value, interval = estimate_texts(estimate, "s")
        rank = study.slowest[phase]
        slowest = Cell(f"rank {rank}", quantity(study.by_rank[rank][phase], "s"))
        share = Cell(percent(estimate.value / whole) if whole else "NA")
        rows.append([Cell(phase), Cell(value, interval), share, *([slowest] if several else [])])
    nothing = Cell("–", "", "quiet")
    if study.exposed is not None and several:
        value, interval = estimate_texts(study.exposed, "s")
        share = Cell(percent(study.exposed.value / whole) if whole else "NA")
        rows.append(
            [Cell("exposed communication", "inside of the phases above"), Cell(value, interval), share, nothing]
        )
    elif study.exposed is None:
        missing = Cell("NA", study.exposed_why, "quiet")
        rows.append([Cell("exposed communication"), missing, nothing, *([nothing] if several else [])])
    columns = [Column("Phase"), Column("Time of a step", numeric=True), Column("Share", numeric=True)]
    columns += [Column("Slowest rank", numeric=True)] if several else []
    return Table(f"Phases of {case}, {count_of(study.steps, 'sampled step')}", columns, rows)


def _bars(study: StepStudy) -> StackedBars:
    """All ranks' median first, then the ranks that take longest."""
    phases = list(study.phases)
    longest = sorted(study.by_rank, key=lambda rank: -sum(study.by_rank[rank].values()))[:_MOST_BARS]
    bars: dict[str, Mapping[str, float]] = {"all": {name: one.value for name, one in study.phases.items()}}
    if len(study.by_rank) > 1:
        bars |= {f"rank {rank}": study.by_rank[rank] for rank in sorted(longest)}
    dropped = len(study.by_rank) - len(longest)
    title = "Phases of a step, medians" + (
        f"; the {len(longest)} slowest of {len(study.by_rank)} ranks" if dropped else ""
    )
    return StackedBars(title, Axis("time of a step", "s", zero=True), phases, bars)


def _rule(study: StepStudy) -> str:
    taken = ", of times from which is taken what their tokens explain" if study.corrected else ""
    return f"median + the larger of {DEVIATIONS:g} × 1.4826 × MAD and {MATERIAL:.0%} of the median{taken}"


def _outliers_told(study: StepStudy) -> str:
    count = len(study.outliers) + study.beyond
    return (
        f"{count_of(count, 'measured step')} took longer than {quantity(study.limit, 's')} ({_rule(study)}; noise alone does so in "
        "about 14 of a million steps where it is 20 % on each of 8 ranks, and hardly ever where it is less). All of them "
        "count in TGS."
    )


def _outlier_table(case: str, study: StepStudy) -> Table:
    rows = []
    for one in study.outliers:
        names = ", ".join(f"rank {rank}" for rank in one.ranks[:8])
        names += f" and {len(one.ranks) - 8} more" if len(one.ranks) > 8 else ""
        hosts = f"on {line(', '.join(one.hosts[:4]), 120)}" if one.hosts else ""
        nobody = Cell("NA", one.why, "quiet") if one.why else Cell("–", "", "quiet")
        who = Cell(names, hosts) if one.ranks else nobody
        times = f"{one.seconds / study.usual:.1f} × the median" if study.usual else ""
        rows.append([Cell(f"{one.step:,}"), Cell(quantity(one.seconds, "s"), times), who])
    caption = f"Step-time outliers of {case}" + (f", the first {len(rows)}" if study.beyond else "")
    return Table(caption, [Column("Step"), Column("Took", numeric=True), Column("Held up by")], rows, captioned=True)
