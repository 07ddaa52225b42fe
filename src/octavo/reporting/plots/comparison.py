"""Size, speed and quality of contenders, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.arguments import expect
from octavo.measuring.comparison_table import BASELINES, COMPARISON, Comparison, Row
from octavo.reporting.plots.figure import new_figure, panel, words
from octavo.reporting.plots.palette import PAPER, Palette

if TYPE_CHECKING:
    from octavo.reporting.plots.figure import Figure


def comparison(result: Comparison, *, palette: Palette = PAPER) -> Figure:
    """Bars of size, latency and the task's metric (or SQNR where there is none).

    Of a metric that counts, the 95 % interval is drawn; its axis does not begin at zero.

    Args:
        result: from `octavo.compare`.
        palette: the colours.

    Raises:
        InputError: it is something else.
        MissingExtra: matplotlib is not installed.
    """
    expect(COMPARISON, result=result)
    rows = [row for row in result.rows if row.error is None]
    figure = new_figure(11, 1.0 + 0.38 * len(rows))
    size, latency, quality = figure.subplots(1, 3, sharey=True)
    colors = [palette.faint if row.name in BASELINES else palette.first for row in rows]
    _bars(size, [(row.size_bytes or 0) / 1e6 for row in rows], "{:.2f}", colors, palette)
    _bars(latency, [row.latency_ms or 0.0 for row in rows], "{:.2f}", colors, palette)
    panel(size, palette, title="Size in MB", grid="x")
    panel(latency, palette, title=f"Latency in ms, batch {result.batch_size}", grid="x")
    _quality(quality, result, rows, colors, palette)
    size.set_yticks(range(len(rows)), [words(row.name) for row in rows])
    size.invert_yaxis()
    return figure


def _bars(axes: Any, values: list[float], form: str, colors: list[str], palette: Palette) -> None:
    bars = axes.barh(range(len(values)), values, color=colors, height=0.62)
    labels = axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=9)
    for label in labels:
        label.set_color(palette.ink)
    axes.set_xlim(0, max([*values, 1e-9]) * 1.25)


def _quality(
    axes: Any, result: Comparison, rows: list[Row], colors: list[str], palette: Palette
) -> None:
    if all(row.metric is None for row in rows):
        panel(axes, palette, title="SQNR in dB against fp32", grid="x")
        known = [min(row.sqnr_db or 0.0, 200.0) for row in rows]
        _bars(axes, known, "{:.1f}", colors, palette)
        return
    name = {"top1": "top-1 in %", "top5": "top-5 in %"}.get(result.metric, result.metric)
    panel(axes, palette, title=name, grid="x")
    for place, (row, color) in enumerate(zip(rows, colors, strict=True)):
        if row.metric is None:
            continue
        if row.interval is not None:
            axes.plot(row.interval, [place, place], color=color, linewidth=5, alpha=0.6)
        axes.plot(row.metric, place, "o", color=palette.ink, markersize=4)
        axes.annotate(
            f"{row.metric:.2f}",
            (row.metric, place),
            textcoords="offset points",
            xytext=(0, 5),
            ha="center",
            color=palette.ink,
            fontsize=9,
        )
    axes.margins(x=0.15, y=0.2)
