"""What a model may compute in float at a small price: little of its work, its weights, its values.

Each tensor that is not rounded is noise less. Sums of narrow residual blocks are cheap to keep in
float; where sums are many of the values, memory is what they cost, and most stay integers. The
first and the last layers are small in most networks, and rounding costs the most there
(Krishnamoorthi 2018, arXiv:1806.08342, section 3.1.4; Esser et al. 2020, arXiv:1902.08153,
section 3).

Tested in tests/flow/effort/test_islands.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from octavo.graph.graph import Graph, Node
from octavo.graph.multiply_adds import multiply_adds
from octavo.graph.soundness.calls import calls, given
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.numerics.observers import FixedRange
from octavo.quantization.plan import Plan, TensorPlan, plan
from octavo.quantization.qconfig import QConfigMapping
from octavo.quantization.reasons import Reason, ReasonKind
from octavo.quantization.targets import ROLES, TARGETS, WEIGHTED

# What the nodes of one kind may be of the whole.
LARGEST_MULTIPLY_ADDS = 0.005
LARGEST_WEIGHTS = 0.01
LARGEST_VALUES = 0.1  # of all that are rounded behind a kernel
Planner = Callable[[Collection[str]], Plan]
"""The plan of a graph with so many of its nodes in float, beside those that it leaves so."""

_ADDITIONS = ("add", "sub")
_IN_FLOAT = Reason(ReasonKind.EFFORT, "the outputs are nearer to the float model's so")


def planner_of(
    graph: Graph, mapping: QConfigMapping | None, target: str, mode: str, precision: str
) -> Planner:
    """How `octavo.plan` leaves more nodes of a graph in float; what a user's rules say of a node
    by its operator, module or name stands.

    Args:
        graph, mapping, target, mode, precision: as for `octavo.plan`.
    """

    def planned(names: Collection[str]) -> Plan:
        nodes = [node for node in graph.nodes if node.name in names]
        rules = (mapping or QConfigMapping()).with_floats(nodes)
        free = {rule.pattern for rule in rules.rules if rule.kind == "node"}
        decided = plan(graph, rules, target, mode, precision)
        said = {name: replace(decided.tensors[name], reason=_IN_FLOAT) for name in free}
        return replace(decided, tensors={**decided.tensors, **said})

    return planned


def floats_cost_little(plan: Plan) -> bool:
    """Whether the target's kernels for integers take and give floats, too."""
    return plan.mode == "static" and TARGETS[plan.target].floats_beside


def with_floats(plan: Plan, planner: Planner, names: Iterable[str]) -> Plan:
    """The plan with more nodes in float; activations that are in both keep their observers."""
    before = {n for n, t in plan.tensors.items() if t.reason.kind is ReasonKind.EFFORT}
    made = planner({*before, *names})

    def kept(tensor: TensorPlan) -> TensorPlan:
        old = plan.tensors.get(tensor.tensor)
        if tensor.kind == "weight" or old is None or old.spec is None or tensor.spec is None:
            return tensor
        if isinstance(tensor.spec.observer, FixedRange):
            return tensor
        return replace(tensor, spec=replace(tensor.spec, observer=old.spec.observer))

    return replace(made, tensors={name: kept(tensor) for name, tensor in made.tensors.items()})


def additions(graph: Graph, plan: Plan) -> list[str]:
    """Additions on integers that make few of the values, such as those of narrow residual blocks:
    the smallest first, as many as are `LARGEST_VALUES` of those that are rounded.
    """
    found = [n for n in graph.nodes if n.short_op in _ADDITIONS and plan.runs_int8(n.name)]
    return _within(found, [_values(graph, plan)])


def ends(graph: Graph, plan: Plan) -> list[str]:
    """Layers that have no layer before or none behind them: the smallest first, as many as are
    `LARGEST_MULTIPLY_ADDS` and `LARGEST_WEIGHTS` of all.
    """
    layers = [node for node in graph.nodes if ROLES.get(node.short_op) == WEIGHTED]
    weights = {node.name: _weights(node, graph) for node in layers}
    at_an_end = _first(graph, layers) | _last(graph, layers)
    found = [node for node in layers if node.name in at_an_end and plan.runs_int8(node.name)]
    counts = multiply_adds(graph)
    work = _shares(counts, sum(counts.values()), LARGEST_MULTIPLY_ADDS)
    return _within(found, [work, _shares(weights, sum(weights.values()), LARGEST_WEIGHTS)])


def _within(nodes: Sequence[Node], shares: Sequence[Mapping[str, float]]) -> list[str]:
    """The smallest of the nodes, as many as stay within all limits.

    Args:
        nodes: to choose from.
        shares: node -> which part it has of what may be spent, for each limit.
    """
    chosen, spent = list[str](), [0.0] * len(shares)
    for node in sorted(nodes, key=lambda node: max(each.get(node.name, 0.0) for each in shares)):
        spent = [part + each.get(node.name, 0.0) for part, each in zip(spent, shares, strict=True)]
        if max(spent) > 1.0:
            break
        chosen.append(node.name)
    return chosen


def _shares(counts: Mapping[str, int], whole: int, largest: float) -> dict[str, float]:
    """Which part each has of what may be spent of the whole."""
    return {name: count / max(largest * whole, 1.0) for name, count in counts.items()}


def _values(graph: Graph, plan: Plan) -> dict[str, float]:
    """How many values each node makes at the example's sizes, beside all that are rounded."""
    made = {call.node.name: call.result for call in calls(graph, given(graph))}
    counts = {name: value.numel() for name, value in made.items() if isinstance(value, Tensor)}
    rounded = sum(counts.get(name, 0) for name in plan.quantized)
    return _shares(counts, rounded, LARGEST_VALUES)


def _weights(node: Node, graph: Graph) -> int:
    layer = WEIGHT_LAYOUTS[node.short_op]
    return sum(graph.constants[n].numel() for n in layer.weights_of(node, graph.constants))


def _first(graph: Graph, layers: Sequence[Node]) -> set[str]:
    """Layers that read what no layer has made."""
    made, names, first = set[str](), {node.name for node in layers}, set[str]()
    for node in graph.nodes:
        behind_layer = any(name in made for name in node.refs())
        if node.name in names and not behind_layer:
            first.add(node.name)
        if node.name in names or behind_layer:
            made.add(node.name)
    return first


def _last(graph: Graph, layers: Sequence[Node]) -> set[str]:
    """Layers whose results no layer reads."""
    read, names, last = set[str](), {node.name for node in layers}, set[str]()
    for node in reversed(graph.nodes):
        before_layer = node.name in read
        if node.name in names and not before_layer:
            last.add(node.name)
        if node.name in names or before_layer:
            read.update(node.refs())
    return last
