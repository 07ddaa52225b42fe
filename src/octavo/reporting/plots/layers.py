"""What rounding does to each layer, and what each layer does to the output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from octavo.arguments import expect, of
from octavo.measuring.layers import LayerErrors, Sensitivity
from octavo.measuring.layers.sensitivity import SENSITIVITY
from octavo.reporting.plots.figure import legend, new_figure, panel, whole_numbers, words
from octavo.reporting.plots.palette import PAPER, Palette

if TYPE_CHECKING:
    from octavo.reporting.plots.figure import Figure

_MOST = 40  # layers in a picture; the worst where there are more


def layer_errors(errors: LayerErrors, *, palette: Palette = PAPER) -> Figure:
    """SQNR of each activation in the order of the graph, own and accumulated, and of each weight.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    expect(of(LayerErrors, way_out="octavo.layer_errors returns one"), errors=errors)
    activations = [row for row in errors.rows if row.kind == "activation"]
    weights = [row for row in errors.rows if row.kind == "weight"]
    figure = new_figure(11, 3.4)
    left, right = figure.subplots(1, 2, sharey=True)
    panel(left, palette, title="Activations")
    series = (
        ("by itself", "o", palette.first, [row.sqnr_db for row in activations]),
        (
            "accumulated",
            ".",
            palette.second,
            [row.accumulated_sqnr_db or math.nan for row in activations],
        ),
    )
    for label, marker, color, values in series:
        left.plot(values, f"{marker}-", color=color, markersize=5, linewidth=1, label=label)
    left.set(ylabel="SQNR in dB (higher is better)", xlabel="layer, in the order of the graph")
    panel(right, palette, title="Weights")
    right.plot(
        [row.sqnr_db for row in weights], "s-", color=palette.third, markersize=5, linewidth=1
    )
    right.set(xlabel="layer, in the order of the graph")
    for axes, rows in ((left, activations), (right, weights)):
        whole_numbers(axes)
        _name_lowest(axes, [(row.tensor, row.sqnr_db) for row in rows], palette)
    legend(left, palette, loc="best")
    return figure


def sensitivity(found: Sensitivity, *, palette: Palette = PAPER) -> Figure:
    """For each layer, the most sensitive on top, the SQNR of the output if it alone is quantized.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    expect(SENSITIVITY, found=found)
    layers = found.layers[:_MOST][::-1]
    figure = new_figure(8.5, 1.1 + 0.24 * len(layers))
    axes = panel(figure.subplots(), palette, grid="x")
    places = range(len(layers))
    measured = [layer.alone_db for layer in layers]
    if any(value is not None for value in measured):
        values = [math.nan if value is None else value for value in measured]
        axes.barh(places, values, color=palette.first, height=0.62, label="measured")
    axes.plot(
        [layer.estimate_db for layer in layers],
        places,
        "D",
        color=palette.second,
        markersize=4.5,
        label="estimated",
    )
    axes.set_yticks(places, [words(layer.layer) for layer in layers])
    axes.set_ylim(-0.6, len(layers) - 0.4)
    axes.set(xlabel="SQNR of the output in dB, this layer alone quantized (lower hurts more)")
    legend(
        figure,
        palette,
        handles=axes.get_legend_handles_labels()[0],
        loc="outside upper right",
        ncols=2,
    )
    return figure


def _name_lowest(axes: Any, rows: list[tuple[str, float]], palette: Palette) -> None:
    """Write the name of the worst layer beside its point."""
    if rows:
        place = min(range(len(rows)), key=lambda index: rows[index][1])
        name, value = rows[place]
        late = place > len(rows) / 2
        axes.annotate(
            words(name),
            (place, value),
            textcoords="offset points",
            xytext=(-6 if late else 6, -10),
            ha="right" if late else "left",
            color=palette.bad,
            fontsize=9,
        )
    axes.margins(y=0.18)
