"""What the pictures show is what the results say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo import plots
from octavo.errors import MissingExtra
from octavo.measuring.comparison_table import Comparison, Row
from octavo.measuring.layers import Distribution, LayerErrors, LayerSensitivity, Sensitivity
from octavo.measuring.layers.error_table import LayerError
from octavo.reporting.plots.figure import save_png
from octavo.reporting.plots.search import front_of
from octavo.reporting.plots.svg import as_svg
from octavo.searching import SearchResult, Trial

ROWS = (
    Row("fp32", "eager", 4_000_000, 1.0, 98.0, latency_ms=8.0, interval=(97.0, 99.0)),
    Row("bf16", "eager", error="RuntimeError: no such kernel"),
    Row("int8", "torch", 1_000_000, 0.25, 97.5, latency_ms=2.0, interval=(96.0, 98.5)),
)
COMPARISON = Comparison(ROWS, "top1", 500, 64, 2, 30)


def _error(tensor: str, kind: str, sqnr_db: float, accumulated: float | None) -> LayerError:
    return LayerError(
        tensor, kind, "conv2d", "int8", sqnr_db, accumulated, 0.1, 0.99, -1.0, 1.0, 0.0, 0.1
    )


ERRORS = LayerErrors(
    (
        _error("conv1.weight", "weight", 38.0, None),
        _error("conv1", "activation", 42.0, 40.0),
        _error("conv2.weight", "weight", 12.0, None),
        _error("conv2", "activation", 31.0, 29.0),
    ),
    samples=8,
)
SENSITIVITY = Sensitivity(
    (
        LayerSensitivity("worst", 20.0, 21.0, 90.0, 40.0, 97.0),
        LayerSensitivity("best", 50.0, 49.0, 98.0, 22.0, 91.0),
    ),
    *("top1", 98.0, 90.0, 20.0, 8, True),
)
TRIALS = (
    Trial("fast", "", (), 97.0, 1.0, 100, 0.25),
    Trial("slow", "", (), 96.0, 2.0, 100, 0.5),
    Trial("good", "", (), 97.9, 0.1, 100, 0.75),
    Trial("failed", "", (), error="cannot"),
)
SEARCH = SearchResult(TRIALS[2], None, TRIALS, "fastest", 0.5, 98.0, 400, 0.9, True, 1.0)
SEEN = Distribution("fc.weight", "weight", "int8", (1, 5, 0, 2), -1.0, 0.5, -0.9, 0.9, -0.8, 0.7)


def test_comparison_leaves_out_what_could_not_run() -> None:
    size, latency, quality = plots.comparison(COMPARISON).axes
    assert [bar.get_width() for bar in size.patches] == [4.0, 1.0]
    assert [bar.get_width() for bar in latency.patches] == [8.0, 2.0]
    assert [label.get_text() for label in size.get_yticklabels()] == ["fp32", "int8"]
    assert [tuple(line.get_xdata()) for line in quality.lines[::2]] == [(97.0, 99.0), (96.0, 98.5)]


def test_comparison_without_labels_shows_sqnr() -> None:
    rows = (
        Row("fp32", "eager", latency_ms=1.0),
        Row("int8", "torch", latency_ms=1.0, sqnr_db=33.0),
    )
    quality = plots.comparison(Comparison(rows, "top1", 5, 1, 1, 1)).axes[2]
    assert [bar.get_width() for bar in quality.patches] == [0.0, 33.0]
    assert "SQNR" in quality.get_title(loc="left")


def test_layer_errors_names_the_worst() -> None:
    activations, weights = plots.layer_errors(ERRORS).axes
    own, accumulated = activations.lines
    assert list(own.get_ydata()) == [42.0, 31.0]
    assert list(accumulated.get_ydata()) == [40.0, 29.0]
    assert list(weights.lines[0].get_ydata()) == [38.0, 12.0]
    assert [axes.texts[0].get_text() for axes in (activations, weights)] == [
        *("conv2", "conv2.weight"),
    ]


def test_sensitivity_has_the_worst_on_top() -> None:
    (axes,) = plots.sensitivity(SENSITIVITY).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["best", "worst"]
    assert [bar.get_width() for bar in axes.patches] == [49.0, 21.0]
    assert list(axes.lines[0].get_xdata()) == [50.0, 20.0]


def test_distribution_draws_counts_and_range() -> None:
    (axes,) = plots.distribution(SEEN).axes
    (stairs,) = axes.patches
    counts, edges, _ = stairs.get_data()
    assert (list(counts), list(edges)) == ([1, 5, 0, 2], [-1.0, -0.5, 0.0, 0.5, 1.0])
    assert [line.get_xdata()[0] for line in axes.lines] == [-0.8, 0.7]
    assert axes.get_yscale() == "log"


def test_distributions_are_three_in_a_row() -> None:
    axes = plots.distributions(dict.fromkeys("abcd", SEEN)).axes
    assert len(axes) == 6
    assert [one.axison for one in axes] == [True] * 4 + [False] * 2
    assert len(plots.distributions({"a": SEEN, "b": SEEN}, ["b"]).axes) == 3


def test_search_marks_the_front() -> None:
    assert [trial.name for trial in front_of(list(TRIALS[:3]))] == ["fast", "good"]
    (axes,) = plots.search(SEARCH).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["loses too much"].get_xdata()) == [0.25, 0.5]
    assert list(lines["within the budget"].get_xdata()) == [0.75]
    assert list(lines["budget"].get_ydata()) == [97.5, 97.5]
    assert list(lines["bf16"].get_xdata()) == [0.9, 0.9]


def test_colours_are_the_palettes() -> None:
    palette = plots.Palette(first="#123456")
    bar = plots.comparison(COMPARISON, palette=palette).axes[0].patches[1]
    assert "#123456" in as_svg(plots.comparison(COMPARISON, palette=palette))
    assert [round(255 * part) for part in bar.get_facecolor()[:3]] == [0x12, 0x34, 0x56]


def test_svg_is_the_same_each_time_and_its_text_is_text() -> None:
    once, again = (as_svg(plots.layer_errors(ERRORS)) for _ in range(2))
    assert once == again
    assert ">conv2.weight</text>" in once


def test_a_notebook_shows_a_picture_on_white() -> None:
    shown = plots.comparison(COMPARISON)._repr_svg_()
    assert ">Size in MB</text>" in shown
    assert "fill: #ffffff" in shown
    assert '<svg style="max-width: 100%; height: auto" ' in shown


def test_png_is_written_whole(tmp_path: Path) -> None:
    save_png(plots.distribution(SEEN), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r'pip install "octavo\[plots\]"'):
        plots.distribution(SEEN)
