"""Figures over message sizes, as lines of a chart."""

import math
from collections.abc import Mapping

from assay.report.charts import Series
from assay.scoring.result import Figure

Points = Mapping[int, Mapping[str, Figure]]
"""Bytes → metric → figure, in order of size."""


def figure_line(label: str, points: Points, metric: str) -> Series:
    """One metric over sizes with its intervals. A size without a value stays out: the table says why."""
    known = [
        (count, figure.estimate)
        for count, figures in points.items()
        if (figure := figures.get(metric)) and figure.estimate
    ]
    return Series(
        label,
        [float(count) for count, _ in known],
        [estimate.value for _, estimate in known],
        [math.nan if estimate.low is None else estimate.low for _, estimate in known],
        [math.nan if estimate.high is None else estimate.high for _, estimate in known],
    )
