"""A figure as SVG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def as_svg(figure: Figure, background: str = "none") -> str:
    """A figure as SVG, its text as text; the same figure gives the same SVG."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "octavo"}):
        figure.savefig(text, format="svg", facecolor=background, metadata={"Date": None})
    return text.getvalue()
