"""What a search tried: accuracy against latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.arguments import expect
from octavo.reporting.plots.figure import legend, new_figure, panel, words
from octavo.reporting.plots.palette import PAPER, Palette
from octavo.searching import SearchResult
from octavo.searching.result import SEARCH
from octavo.searching.trial import Trial

if TYPE_CHECKING:
    from octavo.reporting.plots.figure import Figure


def search(result: SearchResult, *, palette: Palette = PAPER) -> Figure:
    """Every trial as a point; the front joins those that no other beats in both.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    expect(SEARCH, result=result)
    figure = new_figure(8.5, 4.2)
    axes = panel(figure.subplots(), palette, grid="both")
    measured = [t for t in result.trials if t.metric is not None and t.over_fp32 is not None]
    fits = [t for t in measured if t.meets(result.max_drop)]
    _points(axes, [t for t in measured if t not in fits], "x", palette.bad, "loses too much")
    _points(axes, fits, "o", palette.first, "within the budget")
    front = front_of(measured)
    axes.step(
        [t.over_fp32 for t in front],
        [t.metric for t in front],
        where="post",
        color=palette.first,
        linewidth=1,
        alpha=0.7,
        label="front",
    )
    axes.axhline(
        result.float_metric - result.max_drop,
        color=palette.bad,
        linewidth=1,
        linestyle="--",
        label="budget",
    )
    axes.plot(1.0, result.float_metric, "s", color=palette.ink, label="fp32")
    if result.bf16_over_fp32 is not None:
        axes.axvline(
            result.bf16_over_fp32, color=palette.faint, linewidth=1.2, linestyle=":", label="bf16"
        )
    if result.best is not None and result.best.over_fp32 is not None:
        axes.annotate(
            words(result.best.name),
            (result.best.over_fp32, result.best.metric),
            textcoords="offset points",
            xytext=(8, 8),
            color=palette.ink,
            fontsize=9,
        )
    axes.set(xlabel="latency over fp32's (lower is faster)", ylabel="metric")
    legend(axes, palette, loc="best")
    return figure


def front_of(trials: list[Trial]) -> list[Trial]:
    """The trials that no other beats in both latency and metric, the fastest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.over_fp32 or 0.0, -(t.metric or 0.0))):
        if not front or (trial.metric or 0.0) > (front[-1].metric or 0.0):
            front.append(trial)
    return front


def _points(axes: Any, trials: list[Trial], marker: str, color: str, label: str) -> None:
    if trials:
        axes.plot(
            [t.over_fp32 for t in trials],
            [t.metric for t in trials],
            marker,
            color=color,
            label=label,
        )
