"""The figure that all pictures are drawn on."""

from __future__ import annotations

from matplotlib.figure import Figure

from octavo.reporting.plots.svg import as_svg


class Drawing(Figure):
    """A figure that shows itself in notebooks; of matplotlib's they show the name alone, until
    somebody has imported pyplot.
    """

    def _repr_svg_(self) -> str:
        svg = as_svg(self, background="white")
        return svg.replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)
