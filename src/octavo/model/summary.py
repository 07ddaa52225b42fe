"""The summary of a quantized model: what runs in int8, what does not, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from octavo.display import Table, plain
from octavo.graph.graph import Graph
from octavo.model.coverage import Coverage, OfCoverage, coverage
from octavo.quantization.plan import Plan
from octavo.runtimes import ORACLE, Lowered


@dataclass(frozen=True)
class Summary(OfCoverage):
    """How much runs on integers, and why the rest does not.

    Attributes:
        target, mode, runtime: what it was quantized for, how by default, and what runs it now.
        coverage: of multiply-adds and bytes, by how layers run in this runtime.
        unmatched_rules: rules of the mapping that matched nothing.
        provenance: versions and the number of calibration batches.
        note: what the runtime says of itself.
        precision: of what stays float, in words.
        agreement: how near the runtime is to the oracle, in words.
    """

    target: str
    mode: str
    runtime: str
    coverage: Coverage
    unmatched_rules: tuple[str, ...]
    provenance: Mapping[str, Any]
    note: str = ""
    precision: str = "float32"
    agreement: str = "not compared"

    @property
    def headline(self) -> str:
        """What matters most, as in ``"97 % of the multiply-adds in int8"``."""
        return self.coverage.headline

    @property
    def layers(self) -> int:
        """The layers of the graph."""
        return self.coverage.layers

    @property
    def int8(self) -> int:
        """The layers that run on integers in this runtime, or have integers for weights."""
        return self.layers - len(self.coverage.floats)

    @property
    def float_layers(self) -> dict[str, str]:
        """Layer -> why it was left float by the plan."""
        return {layer.name: layer.why for layer in self.coverage.floats if not layer.runtime}

    @property
    def fallbacks(self) -> dict[str, str]:
        """Quantized layer -> why this runtime runs it dequantized."""
        return {layer.name: layer.why for layer in self.coverage.floats if layer.runtime}

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        return {
            "headline": self.headline,
            "target": self.target,
            "mode": self.mode,
            "runtime": self.runtime,
            "layers": self.layers,
            "int8": self.int8,
            "float_layers": self.float_layers,
            "fallbacks": self.fallbacks,
            **self.figures(),
            "unmatched_rules": list(self.unmatched_rules),
            "provenance": dict(self.provenance),
            "note": self.note,
            "precision": self.precision,
            "agreement": self.agreement,
        }

    def table(self) -> Table:
        rows = [
            (layers, cost, f"float on {runtime}" if runtime else "float", why)
            for cost, layers, runtime, why in self.coverage.costs()
        ]
        columns = ("layer", "costs", "runs in", "why")
        notes = (*filter(None, [self.coverage.rest()]), *self._origin())
        return Table(columns, tuple(rows), "\n".join(self._figures()), notes)

    def __str__(self) -> str:
        lines = list(self._figures())
        costs = self.coverage.costs()
        if costs:
            lines.append("in float:")
        for cost, layers, runtime, why in costs:
            here = f"quantized, but {runtime} runs it in float: " if runtime else ""
            lines.append(f"  {cost:>7}  {layers}: {here}{why}")
        rest = filter(None, [self.coverage.rest()])
        return plain("\n".join([*lines, *rest, *self._origin()]), "\n")

    def _figures(self) -> Iterator[str]:
        covered = self.coverage
        yield f"{self.headline} on {self.runtime} (target {self.target})"
        yield (
            f"tensors: {self.size_mb:.2f} MB, {covered.integer_bytes / 1e6:.2f} MB of them "
            f"integers; {self.float_mb:.2f} MB in float32"
        )
        yield f"what stays float computes in {self.precision}"
        yield f"against the oracle: {self.agreement}"
        if self.note:
            yield self.note

    def _origin(self) -> Iterator[str]:
        if self.unmatched_rules:
            yield f"rules that matched nothing: {', '.join(self.unmatched_rules)}"
        told = (f"{k} {v}" for k, v in self.provenance.items() if not isinstance(v, list))
        yield f"made with: {', '.join(told)}"  # lists are tables of their own


def summarize(graph: Graph, plan: Plan, lowered: Lowered, provenance: Mapping[str, Any]) -> Summary:
    """What runs on integers of a quantized graph, and all else that is to be said of it."""
    return Summary(
        target=plan.target,
        mode=plan.mode,
        runtime=lowered.runtime,
        coverage=coverage(graph, plan, lowered),
        unmatched_rules=plan.unmatched,
        provenance=provenance,
        note=lowered.note,
        precision=lowered.precision,
        agreement=_agreement(lowered),
    )


def _agreement(lowered: Lowered) -> str:
    if lowered.runtime == ORACLE:
        return "it is the oracle"
    return "not compared" if lowered.agreement is None else str(lowered.agreement)
