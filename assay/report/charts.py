"""Charts as SVG, from arrays: curves with intervals, histograms, and drawings of their own. Pure functions; colours come from report.css.

What cannot be drawn (NaN, infinities) is counted in the chart itself. Long curves are thinned by the minimum and
the maximum of every bucket, so that a single spike stays visible.
"""

from markupsafe import Markup

from assay.report.axes import Axis
from assay.report.canvas import Drawing
from assay.report.curves import LineChart, Series, draw_lines
from assay.report.histograms import Histogram, draw_histogram

__all__ = ["Axis", "Chart", "Drawing", "Histogram", "LineChart", "Series", "draw"]

Chart = LineChart | Histogram | Drawing


def draw(chart: Chart, ident: str) -> Markup:
    """`chart` as one <svg>. ident: unique on the page, letters and digits; it ties the drawing to its description."""
    if isinstance(chart, LineChart):
        return draw_lines(chart, ident)
    return draw_histogram(chart, ident) if isinstance(chart, Histogram) else chart.draw(ident)
