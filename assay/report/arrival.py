"""Who is late, and how much of a call is waiting: for the communication chapter."""

from collections.abc import Iterable, Sequence

from assay.arrival import Lateness
from assay.report.cells import Cell, Column, Part, Table
from assay.report.charts import Axis, LineChart
from assay.report.quantities import estimate_texts, percent
from assay.report.sizes import Points, figure_line
from assay.report.text import line
from assay.scoring.arrival import by_culprit, places

_LEAD = (
    "These ranks entered after all others, so that every call waited for them. Lateness: own entry to the entry of the "
    "last of the others, median with interval, where it was largest."
)
_LINES = {"waiting_time": "waiting", "call_time_p50": "transfer"}


def late_part(cases: Iterable[tuple[str, Sequence[Lateness]]]) -> Part | None:
    """A table of late ranks, one row for each rank and op (or for all ops alike), None where nobody was late.

    cases: each case's name and what was found in it.
    """
    rows = []
    for case, found in cases:
        for group in by_culprit(found):
            worst = max((item.late for item in group), key=lambda late: late.lateness.value)
            value, interval = estimate_texts(worst.lateness, "s", "lateness")
            least = min(item.late.last_share for item in group)
            rows.append(
                [
                    Cell(f"rank {worst.rank}", f"on {line(group[0].host, 60)}, case {line(case, 60)}", "bad"),
                    Cell(line(places(group), 200)),
                    Cell(value, interval),
                    Cell(percent(least), f"or more, over {len(group)} sizes" if len(group) > 1 else ""),
                ]
            )
    if not rows:
        return None
    columns = [
        Column("Rank"),
        Column("In"),
        Column("Late by", numeric=True),
        Column("Calls in which it came last", numeric=True),
    ]
    return Part("Who is late", _LEAD, tables=[Table("Who is late", columns, rows)])


def split_chart(title: str, points: Points) -> LineChart | None:
    """Waiting against transfer over message size, None where clocks did not allow to tell them apart.

    points: bytes → metric → figure, as a sweep of the communication chapter has them.
    """
    lines = [series for metric, label in _LINES.items() if (series := figure_line(label, points, metric)).x]
    if len(lines) < len(_LINES):
        return None
    return LineChart(title, Axis("message size", "B", log2=True), Axis("time of a call", "s", log10=True), lines)
