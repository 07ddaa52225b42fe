"""The summary of a quantized model: what runs in int8, what does not, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from octavo.display import Table, Tabular, plain
from octavo.graph.graph import Graph, Ref
from octavo.graph.qdq import weight_behind
from octavo.quantization.plan import Plan
from octavo.runtimes import ORACLE, Lowered

# What the counted layers do, by the mode that is the default in the plan.
_RUN = {
    "static": "run in int8",
    "dynamic": "run in dynamic int8",
    "weight_only": "have integer weights",
}


@dataclass(frozen=True)
class Summary(Tabular):
    """Counts and reasons.

    Attributes:
        target, mode, runtime: what it was quantized for, how by default, and what runs it now.
        layers: layers of the graph; ``int8`` of them run on integers in this runtime, or have
            integers for weights.
        float_layers: layer -> why it was left float by the plan.
        fallbacks: quantized layer -> why this runtime runs it dequantized.
        size_mb: megabytes (10**6 bytes) of its tensors.
        float_mb: of the same weights in float32, where there are no scales.
        unmatched_rules: rules of the mapping that matched nothing.
        provenance: versions and the number of calibration batches.
        note: what the runtime says of itself.
        precision: of what stays float, in words.
        agreement: how near the runtime is to the oracle, in words.
    """

    target: str
    mode: str
    runtime: str
    layers: int
    int8: int
    float_layers: Mapping[str, str]
    fallbacks: Mapping[str, str]
    size_mb: float
    float_mb: float
    unmatched_rules: tuple[str, ...]
    provenance: Mapping[str, Any]
    note: str = ""
    precision: str = "float32"
    agreement: str = "not compared"

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        return asdict(self)

    def table(self) -> Table:
        rows = [(layers, "float", why) for layers, why in _grouped(self.float_layers)]
        on_runtime = f"float on {self.runtime}"
        rows += [(layers, on_runtime, why) for layers, why in _grouped(self.fallbacks)]
        title = "\n".join(self._counts())
        return Table(("layer", "runs in", "why"), tuple(rows), title, tuple(self._origin()))

    def __str__(self) -> str:
        lines = list(self._counts())
        for title, entries in (
            ("left in float", self.float_layers),
            (f"quantized, but run in float by {self.runtime}", self.fallbacks),
        ):
            if entries:
                lines.append(f"{title}:")
                lines += [f"  {names}: {reason}" for names, reason in _grouped(entries)]
        return plain("\n".join([*lines, *self._origin()]), "\n")

    def _counts(self) -> Iterator[str]:
        yield (
            f"{self.int8} of {self.layers} layers {_RUN[self.mode]} on {self.runtime} "
            f"(target {self.target})"
        )
        yield f"tensors: {self.size_mb:.2f} MB, {self.float_mb:.2f} MB in float32"
        yield f"what stays float computes in {self.precision}"
        yield f"against the oracle: {self.agreement}"
        if self.note:
            yield self.note

    def _origin(self) -> Iterator[str]:
        if self.unmatched_rules:
            yield f"rules that matched nothing: {', '.join(self.unmatched_rules)}"
        yield f"made with: {', '.join(f'{key} {value}' for key, value in self.provenance.items())}"


_MANY = 4  # layers of one reason, from which on they are counted


def _grouped(entries: Mapping[str, str]) -> list[tuple[str, str]]:
    """Layers and their reason, a line each, or a line for many of the same reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in entries.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        if len(names) < _MANY:
            lines += [(name, reason) for name in names]
        else:
            lines.append((f"{len(names)} layers ({', '.join(names[:2])}, ...)", reason))
    return lines


def summarize(graph: Graph, plan: Plan, lowered: Lowered, provenance: Mapping[str, Any]) -> Summary:
    """Count the layers of a quantized graph by how they run."""
    layers = {
        name: tensor
        for name, tensor in plan.tensors.items()
        if tensor.kind == "activation" and tensor.op not in ("getitem", "sym_size")
    }
    fallbacks = {name: why for name, why in lowered.fallbacks.items() if name in layers}
    float_layers = {
        name: tensor.reason.words for name, tensor in layers.items() if not tensor.on_integers
    }
    return Summary(
        target=plan.target,
        mode=plan.mode,
        runtime=lowered.runtime,
        layers=len(layers),
        int8=len(layers) - len(float_layers) - len(fallbacks),
        float_layers=float_layers,
        fallbacks=fallbacks,
        size_mb=sum(t.numel() * t.element_size() for t in graph.constants.values()) / 1e6,
        float_mb=_float_bytes(graph) / 1e6,
        unmatched_rules=plan.unmatched,
        provenance=provenance,
        note=lowered.note,
        precision=lowered.precision,
        agreement=_agreement(lowered),
    )


def _float_bytes(graph: Graph) -> int:
    """Bytes of the constants, had no weight been quantized; integers that are data stay."""
    sizes = {
        name: tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size())
        for name, tensor in graph.constants.items()
    }
    for node in graph.nodes:
        weight = weight_behind(graph, Ref(node.name))
        if weight is not None:
            sizes |= {name: 0 for name in weight.reader.refs() if name in sizes}
            sizes[weight.name] = 4 * math.prod(weight.shape)
    return sum(sizes.values())


def _agreement(lowered: Lowered) -> str:
    if lowered.runtime == ORACLE:
        return "it is the oracle"
    return "not compared" if lowered.agreement is None else str(lowered.agreement)
