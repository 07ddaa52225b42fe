"""An empty figure in the style of all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.display import plain
from octavo.errors import optional_import
from octavo.model.files.atomic import replacing
from octavo.reporting.plots.palette import Palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Figure  # for the other pictures' annotations


def require_matplotlib() -> None:
    """Say early that pictures cannot be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    with optional_import("matplotlib", "plots", "draw pictures"):
        import matplotlib  # noqa: F401


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, without a background.

    It is made without pyplot: no window system, and nobody else's figures are touched.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require_matplotlib()
    from octavo.reporting.plots.drawing import Drawing

    return Drawing(figsize=(width, height), layout="constrained", facecolor="none")


def words(text: str) -> str:
    r"""A name as it is shown in a picture, in which two dollar signs would begin a formula.

    Example:
        >>> words("cost in $")
        'cost in \\$'
    """
    return plain(text, "\n").replace("$", r"\$")


def panel(axes: Any, palette: Palette, *, title: str = "", grid: str = "y") -> Any:
    """Axes in the style of all pictures: two spines, a faint grid, the palette's ink."""
    axes.set_facecolor("none")
    axes.set_title(words(title), color=palette.ink, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.faint)
    axes.tick_params(colors=palette.ink, labelsize=9)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)
    axes.grid(axis=grid, color=palette.faint, alpha=0.45, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def legend(axes: Any, palette: Palette, **where: Any) -> None:
    """A legend without a frame; ``axes`` may be the figure, for one outside of them."""
    axes.legend(frameon=False, labelcolor=palette.ink, fontsize=9, **where)


def whole_numbers(axes: Any) -> None:
    """Ticks of the horizontal axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure on white as a PNG file, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150, facecolor="white")
