"""Plans that differ from another in one layer, and running their graphs at the cost of that.

What a variant computes as the base does is taken from the base: only the steps behind the change
run again.

Tested in tests/measuring/layers/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Input, Node, Ref, refs_in
from octavo.graph.program import compile_steps, run_of, step_of
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.quantization.plan import Plan, TensorPlan
from octavo.quantization.targets import ROLES, SHARED
from octavo.runtimes import default_runtime, lower


def layers_of(graph: Graph, plan: Plan) -> list[str]:
    """The layers with quantized weights, which is what can be decided one by one."""
    return [
        node.name
        for node in graph.nodes
        if node.short_op in WEIGHT_LAYOUTS and plan.tensors[node.name].on_integers
    ]


def only(graph: Graph, plan: Plan, layer: str) -> Plan:
    """The plan with this layer quantized, what it reads and its weights, and nothing else."""
    kept = set(graph.node(layer).refs())

    def decide(tensor: TensorPlan) -> TensorPlan:
        if tensor.tensor == layer:
            return replace(tensor, spec=None)
        if tensor.kind == "weight":
            return tensor if tensor.tensor in kept else replace(tensor, spec=None)
        spec = tensor.spec if tensor.tensor in kept else None
        runs = tensor.runs and "float"
        return replace(tensor, runs=runs, spec=spec, dynamic=None)

    return replace(plan, tensors={n: decide(t) for n, t in plan.tensors.items()})


def by_itself(graph: Graph, layer: str) -> Graph:
    """The graph of one layer: what it reads are inputs."""
    own = [layer, *(user.name for user in _parts(graph, layer))]
    nodes = tuple(node for node in graph.nodes if node.name in own)
    metas = graph.metas
    read = dict.fromkeys(name for node in nodes for name in node.refs() if name not in own)
    inputs = []
    for name in read:
        meta = metas.get(name)
        if name not in graph.constants:
            assert meta is not None
            inputs.append(Input(name, meta))
    constants = {name: graph.constants[name] for name in read if name in graph.constants}
    outputs = [Ref(name) for name in values_of(graph, layer)]
    return Graph(tuple(inputs), constants, nodes, {}, outputs)


def values_of(graph: Graph, layer: str) -> list[str]:
    """The tensors that a layer makes; a recurrent one makes several."""
    return [user.name for user in _parts(graph, layer)] or [layer]


def _parts(graph: Graph, layer: str) -> list[Node]:
    if graph.node(layer).meta is not None:
        return []
    return [user for user in graph.users[layer] if user.op == "python.getitem"]


def all_but(graph: Graph, plan: Plan, layer: str) -> Plan:
    """The plan with this layer in float, and with it its weights, what no other layer reads as
    integers, and what only moves that.
    """
    users = graph.users
    freed = {layer}
    todo = list(graph.by_name[layer].refs())
    while todo:
        name = todo.pop()
        if name not in plan.quantized:
            continue
        if all(user.name in freed or not plan.reads_integers(user.name) for user in users[name]):
            freed.add(name)
            producer = graph.by_name.get(name)
            if producer is not None and ROLES.get(producer.short_op) == SHARED:
                todo += producer.refs()

    def decide(tensor: TensorPlan) -> TensorPlan:
        if tensor.tensor == layer:
            return replace(tensor, runs="float", dynamic=None)
        return replace(tensor, spec=None) if tensor.tensor in freed else tensor

    return replace(plan, tensors={n: decide(t) for n, t in plan.tensors.items()})


@dataclass(frozen=True)
class Variant:
    """A graph that differs from a base.

    Attributes:
        needs: values of the base that it takes over.
        run: from these, in order, to the flat results.
    """

    needs: tuple[str, ...]
    run: Callable[..., tuple[Any, ...]]

    @classmethod
    def of(cls, base: Graph, graph: Graph) -> Variant:
        """Keep what differs, and what reads it."""
        graph = replace(graph, constants=_shared(base.constants, graph.constants))
        fresh = _fresh(base, graph)
        fresh_names = {node.name for node in fresh} | set(graph.constants)
        outputs = graph.output_names()
        read = [*(name for node in fresh for name in node.refs()), *outputs]
        needs = tuple(dict.fromkeys(name for name in read if name not in fresh_names))
        steps = [step_of(node, base.device) for node in fresh]
        return cls(needs, compile_steps(needs, steps, outputs, graph.constants))


@dataclass(frozen=True)
class Base:
    """A graph of which all values that variants need are kept, for one batch at a time.

    Without variants nothing is kept, and it runs as a model of it would.
    """

    names: tuple[str, ...]
    run: Callable[..., tuple[Any, ...]]

    @classmethod
    def of(cls, graph: Graph, variants: Sequence[Variant]) -> Base:
        if not variants:
            return cls((), lower(graph, default_runtime(graph.device), graph.device).run)
        needed = dict.fromkeys(name for variant in variants for name in variant.needs)
        names = tuple(needed)
        return cls(names, run_of(graph, graph.device, [*names, *graph.output_names()]))

    def values(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """What variants need, by name, and the flat results."""
        results = self.run(*tensors)
        return dict(zip(self.names, results, strict=False)), results[len(self.names) :]


def _shared(base: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The variant's constants, as the base's own tensors where they are the same."""
    return {
        name: base[name] if name in base and _equal(base[name], tensor) else tensor
        for name, tensor in own.items()
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _fresh(base: Graph, graph: Graph) -> list[Node]:
    """The nodes that compute something else than the base's node of that name."""
    changed: set[str] = {
        name
        for name, tensor in graph.constants.items()
        if name not in base.constants or base.constants[name] is not tensor
    }
    fresh = []
    for node in graph.nodes:
        same = base.by_name.get(node.name) == node and not changed.intersection(
            refs_in((node.args, dict(node.kwargs)))
        )
        if not same:
            changed.add(node.name)
            fresh.append(node)
    return fresh
