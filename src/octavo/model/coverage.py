"""How much of a model runs on integers: its multiply-adds, which cost time, and its bytes.

Coverages add up: that of a model made of several graphs is the sum of theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.display import Tabular, percent
from octavo.graph.graph import Graph, Ref
from octavo.graph.multiply_adds import multiply_adds
from octavo.graph.qdq import weight_behind
from octavo.quantization.bfloat16 import SUFFIX
from octavo.quantization.plan import Plan, TensorPlan
from octavo.quantization.targets import ROLES, SHARED
from octavo.runtimes import Lowered

# What is said of multiply-adds by how their layers run, as plans name it; the rest is float.
_RUN = {
    "int8": "in int8",
    "dynamic": "in dynamic int8",
    "weight_only": "in float from integer weights",
}
_FEW_BYTES = 0.01  # of all: float weights that take less are not worth a line


@dataclass(frozen=True)
class FloatLayer:
    """A layer that computes in float.

    Attributes:
        name: of the layer.
        op: its operator.
        why: the plan's reason, or the runtime's.
        multiply_adds: of all of its calls, at the example's sizes.
        bytes: of the weights that it has as floats.
        runtime: which runs it in float though it is quantized; ``""`` where the plan left it float.
    """

    name: str
    op: str
    why: str
    multiply_adds: int = 0
    bytes: int = 0
    runtime: str = ""


@dataclass(frozen=True)
class Coverage:
    """What runs on integers of what a model computes and holds.

    Attributes:
        multiply_adds: how a layer runs (``"int8"``, ``"dynamic"``, ``"weight_only"``,
            ``"bfloat16"`` or ``"float"``) -> multiply-adds of those that do, in one call with
            inputs of the example's sizes.
        bytes: of all tensors.
        integer_bytes: of the integers among them that stand for weights.
        float_bytes: of the tensors, had nothing been quantized.
        layers: how many there are, sizes and lists aside.
        floats: those that compute in float.

    Example:
        >>> half = Coverage({"int8": 30}) + Coverage({"float": 10})
        >>> print(half.headline)
        75 % of the multiply-adds in int8
    """

    multiply_adds: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    integer_bytes: int = 0
    float_bytes: int = 0
    layers: int = 0
    floats: tuple[FloatLayer, ...] = ()

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(
            dict(Counter(self.multiply_adds) + Counter(other.multiply_adds)),
            self.bytes + other.bytes,
            self.integer_bytes + other.integer_bytes,
            self.float_bytes + other.float_bytes,
            self.layers + other.layers,
            self.floats + other.floats,
        )

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return sum(self.multiply_adds.values())

    @property
    def share(self) -> float | None:
        """The part of the multiply-adds that read integers; ``None`` where there are none."""
        return sum(map(self._share, _RUN)) if self.total else None

    @property
    def headline(self) -> str:
        """The share in words, by how the layers run."""
        if not self.total:
            return f"no multiply-adds, {megabytes(self.integer_bytes)} of integers"
        parts = [
            (percent(self._share(runs)), words) for runs, words in _RUN.items() if self._share(runs)
        ]
        if not parts:
            return "0 % of the multiply-adds on integers"
        (share, words), *others = parts
        first = f"{share} of the multiply-adds {words}"
        return ", ".join([first, *(f"{share} {words}" for share, words in others)])

    def _share(self, runs: str) -> float:
        return self.multiply_adds.get(runs, 0) / self.total

    def costs(self) -> list[tuple[str, str, str, str]]:
        """What computes in float and costs, most first: its cost, layers, which runtime, and why.

        Layers of the same reason are one entry. The cost is a share of the multiply-adds, or
        megabytes of weights.
        """
        groups: dict[tuple[str, str], list[FloatLayer]] = {}
        for layer in self.floats:
            if layer.multiply_adds or layer.bytes > _FEW_BYTES * self.float_bytes:
                groups.setdefault((layer.runtime, layer.why), []).append(layer)
        ordered = sorted(groups.items(), key=lambda group: _size(group[1]), reverse=True)
        return [
            (self._cost(layers), _named(layers), runtime, why) for (runtime, why), layers in ordered
        ]

    def _cost(self, layers: list[FloatLayer]) -> str:
        products, size = _size(layers)
        return percent(products / self.total) if products else megabytes(size)

    def rest(self) -> str:
        """The other layers in float, in one line; ``""`` where there are none."""
        rest = [
            layer.op
            for layer in self.floats
            if not layer.multiply_adds
            and layer.bytes <= _FEW_BYTES * self.float_bytes
            and ROLES.get(layer.op) != SHARED
        ]
        counts = Counter(rest).most_common()
        listed = ", ".join(f"{count} {op}" for op, count in counts[:_MANY])
        others = f", {sum(c for _, c in counts[_MANY:])} others" if len(counts) > _MANY else ""
        return f"in float too, without multiply-adds: {listed}{others}" if rest else ""


class OfCoverage(Tabular):
    """A summary that tells of what runs on integers.

    Attributes:
        coverage: of multiply-adds and bytes.
    """

    coverage: Coverage

    @property
    def share(self) -> float | None:
        """The part of the multiply-adds that read integers; ``None`` where there are none."""
        return self.coverage.share

    @property
    def size_mb(self) -> float:
        """Megabytes (10**6 bytes) of all tensors."""
        return self.coverage.bytes / 1e6

    @property
    def float_mb(self) -> float:
        """Of the same weights in float32, where there are no scales."""
        return self.coverage.float_bytes / 1e6

    def figures(self) -> dict[str, Any]:
        """All of these, JSON-ready."""
        return {
            "multiply_adds": dict(self.coverage.multiply_adds),
            "share": self.share,
            "size_mb": self.size_mb,
            "integer_mb": self.coverage.integer_bytes / 1e6,
            "float_mb": self.float_mb,
        }


def megabytes(size: int) -> str:
    """Bytes in words.

    Example:
        >>> megabytes(1_250_000)
        '1.25 MB'
    """
    return f"{size / 1e6:.2f} MB"


_MANY = 4  # layers of one reason, from which on they are counted; operators that are listed


def _named(layers: list[FloatLayer]) -> str:
    names = [layer.name for layer in layers]
    few = len(names) < _MANY
    return ", ".join(names) if few else f"{len(names)} layers ({', '.join(names[:2])}, ...)"


def _size(layers: list[FloatLayer]) -> tuple[int, int]:
    return sum(layer.multiply_adds for layer in layers), sum(layer.bytes for layer in layers)


def coverage(
    graph: Graph, plan: Plan, lowered: Lowered, *, calls: float = 1, path: str = ""
) -> Coverage:
    """What of a quantized graph runs on integers in a runtime.

    Args:
        graph: the quantized graph.
        plan, lowered: what was decided, and how the runtime runs it.
        calls: how many calls such as the example's a call of the whole model makes of this graph;
            bytes count once.
        path: of the module that the graph stands for, which the layers' names begin with.
    """
    counts = multiply_adds(graph)
    work = {name.removesuffix(SUFFIX): round(calls * count) for name, count in counts.items()}
    layers = {
        name: tensor
        for name, tensor in plan.tensors.items()
        if tensor.kind == "activation" and tensor.op not in ("getitem", "sym_size")
    }
    runs = {name: _runs(name, tensor, lowered) for name, tensor in layers.items()}
    totals: Counter[str] = Counter()
    for name, count in work.items():
        totals[runs.get(name, "float")] += count
    prefix = f"{path}." if path else ""
    floats = (
        FloatLayer(
            prefix + name,
            tensor.op,
            lowered.fallbacks.get(name, tensor.reason.words),
            work.get(name, 0),
            0 if tensor.on_integers else _weight_bytes(graph, name),
            lowered.runtime if tensor.on_integers else "",
        )
        for name, tensor in layers.items()
        if runs[name] not in _RUN
    )
    return Coverage(dict(totals), *_bytes(graph), len(layers), tuple(floats))


def _runs(name: str, tensor: TensorPlan, lowered: Lowered) -> str:
    return "float" if name in lowered.fallbacks else tensor.runs


def _weight_bytes(graph: Graph, name: str) -> int:
    """Bytes of the constants that a node reads as floats."""
    node = graph.by_name.get(name, graph.by_name.get(f"{name}{SUFFIX}"))
    tensors = [graph.constants.get(read) for read in set(node.refs() if node else ())]
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _bytes(graph: Graph) -> tuple[int, int, int]:
    """Of the constants, of the weights' integers, and had no weight been quantized."""
    held = {name: t.numel() * t.element_size() for name, t in graph.constants.items()}
    floats = {
        name: 4 * t.numel() if t.is_floating_point() else held[name]
        for name, t in graph.constants.items()
    }
    weights = [weight_behind(graph, Ref(node.name)) for node in graph.nodes]
    quantized = {weight.name: weight for weight in weights if weight is not None}
    for name, weight in quantized.items():
        floats |= {read: 0 for read in weight.reader.refs() if read in floats}
        floats[name] = 4 * math.prod(weight.shape)
    return sum(held.values()), sum(held[name] for name in quantized), sum(floats.values())
