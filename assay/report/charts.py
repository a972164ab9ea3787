"""Charts as SVG, from arrays: curves with intervals, and histograms. Pure functions; colours come from report.css.

What cannot be drawn (NaN, infinities) is counted in the chart itself. Long curves are thinned by the minimum and
the maximum of every bucket, so that a single spike stays visible.
"""

from markupsafe import Markup

from assay.report.axes import Axis
from assay.report.curves import LineChart, Series, draw_lines
from assay.report.histograms import Histogram, draw_histogram

__all__ = ["Axis", "Chart", "Histogram", "LineChart", "Series", "draw"]

Chart = LineChart | Histogram


def draw(chart: Chart, ident: str) -> Markup:
    """`chart` as one <svg>. ident: unique on the page, letters and digits; it ties the drawing to its description."""
    return draw_lines(chart, ident) if isinstance(chart, LineChart) else draw_histogram(chart, ident)
