"""The page: one file, no network, readable in light and dark.

Tested in tests/reporting/test_report.py and tests/reporting/test_browser.py.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from octavo.display import percent, plain
from octavo.errors import optional_import
from octavo.measuring.comparison_table import BASELINES, Comparison
from octavo.measuring.layers import Distribution, LayerErrors, Sensitivity
from octavo.measuring.layers.repair import Repair
from octavo.model.parts_summary import PartsSummary
from octavo.model.summary import Summary
from octavo.quantization.plan import Plan
from octavo.reporting.decision import Decision
from octavo.reporting.layout import Layout
from octavo.reporting.plots import comparison as comparison_plot
from octavo.reporting.plots import distribution as distribution_plot
from octavo.reporting.plots import layer_errors as layer_errors_plot
from octavo.reporting.plots import search as search_plot
from octavo.reporting.plots import sensitivity as sensitivity_plot
from octavo.reporting.plots.figure import require_matplotlib
from octavo.reporting.plots.palette import Palette
from octavo.reporting.plots.svg import as_svg
from octavo.reporting.samples import Shown
from octavo.searching import SearchResult
from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.reporting.plots.figure import Figure

HISTOGRAMS = 18  # the worst tensors; octavo.reporting.plots.distribution draws any
# The colours of a picture in light and in dark. What Matplotlib is given are marks for them, which
# are not colours of anything else.
_THEMES = {
    "ink": ("#010f01", "#1f2328", "#e6edf3"),
    "faint": ("#020f02", "#a9b1ba", "#59636e"),
    "first": ("#030f03", "#0b6bb3", "#4ea3e6"),
    "second": ("#040f04", "#c26a00", "#f0a33c"),
    "third": ("#050f05", "#1d7f5b", "#3fbf8f"),
    "bad": ("#060f06", "#c8361d", "#ff7b66"),
}
_MARKS = Palette(**{name: mark for name, (mark, _, _) in _THEMES.items()})
# dB of a layer's own error, from which on it is called so; by the rule of thumb that 8 bits of a
# well-filled range give 40 dB and more.
_LEVELS = ((40.0, "good"), (30.0, "fair"), (20.0, "poor"), (-1e9, "bad"))


@dataclass(frozen=True)
class Picture:
    """A chart: its source for ``<img>``, and what it says in words."""

    source: str
    alt: str


def require_packages() -> None:
    """Say early that no page can be written.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    with optional_import("jinja2", "report", "write a report"):
        import jinja2  # noqa: F401
    require_matplotlib()


def _as_shown(value: Any) -> Any:
    """Text that the page shows; a table or a picture is more than text, and made of shown words."""
    return plain(value, "\n") if type(value) is str else value


def render(
    *,
    title: str,
    verdict: str,
    decision: Decision,
    summary: Summary | PartsSummary,
    plan: Plan,
    comparison: Comparison,
    errors: LayerErrors,
    distributions: Mapping[str, Distribution],
    layout: Layout,
    sensitivity: Sensitivity | None,
    search: SearchResult | None,
    samples: Sequence[Shown],
    repairs: Sequence[Repair],
    repair_code: str,
) -> str:
    """The page as text.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    require_packages()
    import jinja2

    folder = files("octavo.reporting")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_as_shown
    )
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    levels = [None if row.sqnr_db is None else level_of(row.sqnr_db) for row in layout.rows]
    return template.render(
        title=title,
        verdict=verdict.splitlines(),
        decision=decision,
        samples=samples,
        anchor=anchor,
        inf=math.inf,
        version=__version__,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        cards=list(_cards(comparison, summary)),
        summary=summary,
        parts_table=summary._repr_html_() if isinstance(summary, PartsSummary) else None,
        comparison_table=comparison._repr_html_(),
        comparison_picture=picture(
            comparison_plot(comparison, palette=_MARKS), "Size, latency and quality as bars"
        ),
        layout=layout,
        levels=levels,
        lanes=max((edge.lane for edge in layout.edges), default=0),
        errors_table=errors._repr_html_(),
        errors_picture=picture(
            layer_errors_plot(errors, palette=_MARKS), "SQNR of each activation and each weight"
        ),
        histograms=list(_histograms(errors, distributions)),
        hidden=max(0, len(distributions) - HISTOGRAMS),
        sensitivity=sensitivity,
        sensitivity_table=None if sensitivity is None else sensitivity._repr_html_(),
        sensitivity_picture=sensitivity
        and picture(
            sensitivity_plot(sensitivity, palette=_MARKS), "SQNR of the output, layer by layer"
        ),
        search=search,
        search_table=None if search is None else search._repr_html_(),
        search_picture=search
        and picture(search_plot(search, palette=_MARKS), "Metric against latency of each trial"),
        plan=plan,
        plan_table=plan._repr_html_(),
        repairs=repairs,
        repair_code=repair_code,
    )


def anchor(layer: str) -> str:
    """Where a layer stands on the page, for links that are sent on: ``report.html#layer-conv1``."""
    return "layer-" + re.sub(r"[^\w.]+", "-", layer)


def level_of(sqnr_db: float) -> str:
    """``"good"``, ``"fair"``, ``"poor"`` or ``"bad"``."""
    return next(name for least, name in _LEVELS if not sqnr_db < least)


def picture(figure: Figure, alt: str) -> Picture:
    """A figure that was drawn with marks for colours, as an SVG image that knows both themes."""
    svg = as_svg(figure)
    for name, (mark, _, _) in _THEMES.items():
        svg = svg.replace(mark, f"var(--{name})")
    light, dark = (
        "".join(f"--{name}: {colors[place]}; " for name, colors in _THEMES.items())
        for place in (1, 2)
    )
    style = (
        f"<style>:root {{ {light}}} @media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }} "
        "text { font-family: system-ui, sans-serif !important }</style>"
    )
    svg = re.sub(r"(<svg [^>]*>)", lambda match: match[1] + style, svg, count=1)
    data = base64.b64encode(svg.encode()).decode()
    return Picture(f"data:image/svg+xml;base64,{data}", alt)


def _cards(
    comparison: Comparison, summary: Summary | PartsSummary
) -> Iterable[tuple[str, str, str]]:
    """The figures that people look for first: what, how much, against what."""
    fp32 = comparison.rows[0]
    row = next((r for r in comparison.rows if r.name not in BASELINES and not r.error), None)
    if row is not None and row.size_ratio:
        yield "Size", f"{row.size_ratio:.2f}x", f"{(row.size_bytes or 0) / 1e6:.2f} MB; fp32 = 1"
    if row is not None and row.speedup:
        yield "Speed", f"{row.speedup:.2f}x", f"{row.latency_ms:.2f} ms a batch; fp32 = 1"
    if row is not None and row.metric is not None and fp32.metric is not None:
        tested = "" if row.p_value is None else f"; p = {row.p_value:.2g}"
        name = comparison.metric
        yield name, f"{row.metric:.2f}", f"{row.metric - fp32.metric:+.2f} against fp32{tested}"
    elif row is not None and row.sqnr_db is not None:
        yield "SQNR", f"{row.sqnr_db:.1f} dB", "of the outputs against fp32's"
    share = summary.share
    if share is not None:
        yield "On integers", percent(share), f"of the multiply-adds, on {summary.runtime}"


def _histograms(
    errors: LayerErrors, distributions: Mapping[str, Distribution]
) -> Iterable[tuple[str, Picture]]:
    """Of the tensors that lose most by themselves, the worst first."""
    rows = sorted(
        (row for row in errors.rows if row.tensor in distributions), key=lambda row: row.sqnr_db
    )
    for row in rows[:HISTOGRAMS]:
        alt = (
            f"Histogram of {row.tensor}: {row.low:.3g} to {row.high:.3g}, "
            f"{100 * row.clipped:.2f} % clipped"
        )
        drawn = distribution_plot(distributions[row.tensor], palette=_MARKS)
        yield f"{row.sqnr_db:.1f} dB, {100 * row.clipped:.2f} % clipped", picture(drawn, alt)
