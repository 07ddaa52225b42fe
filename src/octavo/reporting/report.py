"""`report`: the comparison, the layers, the histograms, the advice, gathered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from html import escape
from itertools import islice
from typing import Any

from torch import nn

from octavo.arguments import (
    BATCHES,
    COUNT,
    FUNCTION,
    NAMES,
    TEXT,
    called_rightly,
    expect,
    expect_repeatable,
    optional,
)
from octavo.display import finite
from octavo.measuring.comparison import compare
from octavo.measuring.comparison_table import COMPARISON, Comparison
from octavo.measuring.layers import (
    Distribution,
    LayerErrors,
    Sensitivity,
    distributions,
    layer_errors,
)
from octavo.measuring.layers.repair import Repair, repair_code, repairs
from octavo.measuring.layers.sensitivity import SENSITIVITY
from octavo.measuring.metrics import Metric
from octavo.measuring.modules import modules_in, plan_of_modules
from octavo.measuring.regions import graphs_in, plan_of
from octavo.measuring.samples import changed_samples
from octavo.model.files.atomic import replacing
from octavo.model.kinds import require_float, require_quantized
from octavo.model.parts_summary import PartsSummary
from octavo.model.summary import Summary
from octavo.model.verbs import summary
from octavo.quantization.plan import Plan
from octavo.reporting.decision import Decision, decide
from octavo.reporting.html import render
from octavo.reporting.layout import Layout, layout_of, layout_of_modules
from octavo.reporting.samples import Decode, Shown, shown
from octavo.searching import SearchResult
from octavo.searching.result import SEARCH

FEW = 8  # batches that layers and histograms are measured on


@dataclass(frozen=True)
class Report:
    """What is known of a quantized model.

    Attributes:
        title: of the page.
        summary: what runs in int8.
        plan: every decision with its reason; of a model with regions those of all of them.
        comparison: size, accuracy and speed beside fp32 and bf16.
        errors: what rounding does to each layer.
        distributions: histograms with the range of the integers, by tensor.
        layout: the graph as rows.
        sensitivity: what each layer does to the output; ``None`` if it was not asked for.
        search: what a search tried; ``None`` if there was none.
        samples: those whose answers change most, before and after.

    Example:
        >>> found = octavo.compare(model, q, loader, rounds=3)
        >>> report = octavo.report(model, q, loader, comparison=found)
        >>> sorted(report.to_dict())[:3]
        ['comparison', 'decision', 'layers']
        >>> report.decision.answer in ("yes", "perhaps", "no")
        True
    """

    title: str
    summary: Summary | PartsSummary
    plan: Plan
    comparison: Comparison
    errors: LayerErrors
    distributions: Mapping[str, Distribution]
    layout: Layout
    sensitivity: Sensitivity | None = None
    search: SearchResult | None = None
    samples: tuple[Shown, ...] = ()

    @property
    def decision(self) -> Decision:
        """May it be shipped, what does it cost, what does it bring?"""
        return decide(self.comparison)

    @cached_property
    def repairs(self) -> tuple[Repair, ...]:
        """The layers to leave in float if the loss is too large, the worst first."""
        return repairs(self.errors, self.plan, self.sensitivity)

    @property
    def repair_code(self) -> str:
        """Python that does so."""
        # Only of modules nothing says on what they run.
        return repair_code(self.repairs, self.plan, None if self.summary.runtime else "modules")

    def verdict(self) -> str:
        """The outcome, a sentence for each quantized model."""
        return self.comparison.verdict()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data: all but the plan and the layout."""
        return {
            "title": self.title,
            "verdict": self.verdict(),
            "decision": vars(self.decision),
            "summary": self.summary.to_dict(),
            "comparison": self.comparison.to_dict(),
            "layers": self.errors.to_dict(),
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
            "search": None if self.search is None else self.search.to_dict(),
            "repairs": [vars(repair) for repair in self.repairs],
            "samples": [_without_pictures(sample) for sample in self.samples],
        }

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One page that needs nothing else: no network, no other file.

        Args:
            path: a file to write it to, whole or not at all.

        Raises:
            MissingExtra: jinja2 or matplotlib is not installed.
            ArtifactError: the file cannot be written.
        """
        page = render(
            **{field.name: getattr(self, field.name) for field in fields(self)},
            verdict=self.verdict(),
            decision=self.decision,
            repairs=self.repairs,
            repair_code=self.repair_code,
        )
        if path is not None:
            with replacing(path) as file:
                file.write_text(page, encoding="utf-8")
        return page

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own."""
        return (
            f'<iframe srcdoc="{escape(self.to_html())}" title="{escape(self.title)}" '
            'style="width: 100%; height: 48rem; border: 0"></iframe>'
        )


@called_rightly()
def report(
    model: nn.Module,
    q: nn.Module,
    data: Iterable[Any],
    *,
    title: str = "Quantization report",
    comparison: Comparison | None = None,
    sensitivity: Sensitivity | None = None,
    search: SearchResult | None = None,
    metric: str | Metric | None = None,
    inputs: Callable[[Any], Any] | None = None,
    runtimes: Sequence[str] | None = None,
    batches: int | None = FEW,
    labels: Sequence[str] | None = None,
    decode: Decode | None = None,
    progress: bool = True,
) -> Report:
    """Measure what a report needs, and gather it.

    Args:
        model: the float model that ``q`` was made of.
        q: the quantized model; of one with regions each is shown, with its path in front of the
            names of its layers; of one with modules of `octavo.nn` what each returns.
        data: batches, with labels if there is a metric; a list or a DataLoader, as it is iterated
            several times.
        title: of the page.
        comparison: from `octavo.compare`; measured here without.
        sensitivity: from `octavo.sensitivity`; that section is left out without.
        search: from `octavo.search`; that section is left out without.
        metric, runtimes: as for `octavo.compare`.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        batches: that layers, histograms and samples are taken from; ``None`` is all.
        labels: names of the classes, in their order, for the samples on the page.
        decode: token ids -> text, as a tokenizer's ``decode``, for samples that are texts.
        progress: bars in terminals and notebooks, lines in logs.

    Raises:
        InputError: no data, data that can be iterated only once, or ``q`` was not made of this
            model.

    Example:
        >>> found = octavo.compare(model, q, loader, rounds=3)
        >>> page = octavo.report(model, q, loader, comparison=found).to_html("report.html")
        >>> page.startswith("<!DOCTYPE html>")
        True
    """
    require_float(model, "report")
    graphs, modules = graphs_in(q), modules_in(q)
    if not graphs and not modules:
        require_quantized(q, "report")
    expect(BATCHES, data=data)
    expect(TEXT, title=title)
    optional(COUNT, batches=batches)
    optional(NAMES, labels=labels)
    optional(FUNCTION, decode=decode)
    optional(COMPARISON, comparison=comparison)
    optional(SENSITIVITY, sensitivity=sensitivity)
    optional(SEARCH, search=search)
    expect_repeatable("a report needs it several times", data=data)
    if comparison is None:
        comparison = compare(
            model, q, data, metric=metric, inputs=inputs, runtimes=runtimes, progress=progress
        )
    errors = layer_errors(model, q, islice(data, batches), inputs=inputs, progress=progress)
    seen = distributions(model, q, islice(data, batches), inputs=inputs, progress=progress)
    changed = changed_samples(model, q, islice(data, batches), inputs=inputs, progress=progress)
    return Report(
        title=title,
        summary=summary(q),
        plan=plan_of(graphs) if graphs else plan_of_modules(modules),
        comparison=comparison,
        errors=errors,
        distributions=seen,
        layout=layout_of(graphs, errors) if graphs else layout_of_modules(modules, errors),
        sensitivity=sensitivity,
        search=search,
        samples=tuple(shown(sample, labels, decode) for sample in changed),
    )


def _without_pictures(sample: Shown) -> dict[str, Any]:
    told: dict[str, Any] = finite({k: v for k, v in vars(sample).items() if k != "pictures"})
    return told
