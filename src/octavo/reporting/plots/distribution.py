"""Histograms of tensors, with the range that their integers hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from octavo.arguments import expect, of
from octavo.measuring.layers import Distribution
from octavo.reporting.plots.figure import new_figure, panel
from octavo.reporting.plots.palette import PAPER, Palette

if TYPE_CHECKING:
    from octavo.reporting.plots.figure import Figure


def distribution(seen: Distribution, *, palette: Palette = PAPER) -> Figure:
    """The histogram of one tensor; what lies outside the two lines is clipped.

    Counts are on a logarithmic axis, since the few large values are what the range is about.

    Args:
        seen: one of those that `octavo.distributions` returns.
        palette: the colours.

    Raises:
        InputError: it is something else.
        MissingExtra: matplotlib is not installed.

    Example:
        >>> from octavo import plots
        >>> seen = octavo.distributions(model, q, loader)
        >>> plots.distribution(seen["conv1.weight"]).savefig("weight.svg")
    """
    expect(of(Distribution, way_out="octavo.distributions(...)[name] returns one"), seen=seen)
    figure = new_figure(5.2, 2.6)
    _draw(figure.subplots(), seen, palette)
    return figure


def distributions(
    seen: Mapping[str, Distribution],
    tensors: Iterable[str] | None = None,
    *,
    palette: Palette = PAPER,
) -> Figure:
    """The histograms of several tensors, three in a row.

    Args:
        seen: from `octavo.distributions`.
        tensors: their names; ``None`` is all.
        palette: the colours.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    chosen = [seen[name] for name in (seen if tensors is None else tensors)]
    rows = max(1, -(-len(chosen) // 3))
    figure = new_figure(13, 2.5 * rows)
    places = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes, one in zip(places, chosen, strict=False):
        _draw(axes, one, palette)
    for axes in places[len(chosen) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Any, seen: Distribution, palette: Palette) -> None:
    panel(axes, palette, title=seen.tensor)
    edges = [seen.start + seen.width * index for index in range(len(seen.counts) + 1)]
    axes.stairs(seen.counts, edges, fill=True, color=palette.first, alpha=0.75)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set(xlabel=f"{seen.kind}, {seen.values}", ylabel="values")
    axes.xaxis.label.set_fontsize(8.5)
    axes.set_ylim(bottom=0.7)
    if seen.clip_low is None or seen.clip_high is None:
        return
    for end in (seen.clip_low, seen.clip_high):
        axes.axvline(end, color=palette.bad, linewidth=1.4)
    axes.set_title("range of the integers", color=palette.bad, fontsize=8.5, loc="right")
