"""From a float graph, a plan and qparams to the quantized graph, in canonical QDQ form.

Each quantized activation ``x`` becomes ``x -> x.quantized -> x.dequantized``; each quantized weight
is stored as integers and read through ``<weight>.dequantized``, those of four bits two to a byte
and read through ``<weight>.unpacked``. A layer in float that shares a weight reads
``<weight>_float``. A dynamic layer reads ``x.dynamic``, which rounds ``x`` by its own range. Biases
of static layers become whole steps of their sums, and fit into int32. Calibration and training end
here alike: both give weights and qparams. Layers in bfloat16: see `octavo.quantization.bfloat16`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from octavo.errors import PlanError
from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.qdq import (
    ATTENTION,
    DEQUANTIZE,
    DYNAMIC,
    QUANTIZE,
    weight_readers,
)
from octavo.graph.rewrite import rewrite
from octavo.numerics import octavo_operators
from octavo.numerics.affine import QParams
from octavo.numerics.dtypes import UINT8
from octavo.quantization.bfloat16 import in_bfloat16
from octavo.quantization.calibrate import check_constants
from octavo.quantization.plan import Plan
from octavo.quantization.qconfig import QSpec
from octavo.quantization.weights import Measured, RoundedGraph, WeightMethod, round_weights


def quantize_graph(
    graph: Graph,
    plan: Plan,
    qparams: Mapping[str, QParams],
    weights: Sequence[WeightMethod] = (),
    statistics: Mapping[Measured, Any] | None = None,
) -> Graph:
    """The quantized graph. Its constants are tensors of its own, none of the user's.

    A node that runs in int8 reads dequantized values. One that runs in float reads the dequantized
    value of what an int8 kernel made, and the original of what was made in float.

    Args:
        graph: the canonical float graph.
        plan: made for that graph.
        qparams: for every tensor that the plan quantizes.
        weights: how weights become integers, in the order in which the methods apply; the nearest
            ones without any.
        statistics: what calibration with these methods has measured.

    Raises:
        PlanError: the plan names tensors that the graph does not have, or qparams are missing; a
            method gives integers that the scheme does not have.
        CalibrationError: a constant of the graph has NaN or an infinity in it, or a statistic is
            missing.
    """
    _check(graph, plan, qparams)
    check_constants(graph)
    return _with_qdq(plan, round_weights(graph, plan, qparams, weights, statistics))


def _with_qdq(plan: Plan, rounded: RoundedGraph) -> Graph:
    """The graph with nodes that quantize and dequantize."""
    graph, qparams, quantized = rounded.graph, rounded.qparams, plan.quantized
    constants = {name: tensor.detach().clone() for name, tensor in graph.constants.items()}
    floats = _floats_of_tied_weights(graph, plan)
    for name, kept in floats.items():
        constants[kept] = constants[name]
    constants |= rounded.integers
    weight_nodes = {
        name: _quantized_weight(name, constants, qparams[name]) for name in rounded.integers
    }
    dynamic = _DynamicInputs(plan)
    activations = {name for name, tensor in quantized.items() if tensor.kind != "weight"}
    made_in_int8 = {name for name in activations if plan.runs_int8(name)}
    dequantized = {name: f"{name}.dequantized" for name in quantized}
    by_int8 = dequantized
    by_float = {n: d for n, d in dequantized.items() if n in made_in_int8 or n in weight_nodes}

    def with_roundings(node: Node) -> Iterator[Node]:
        if not plan.reads_integers(node.name):
            node = node.renamed(floats)
        for name in node.refs():
            yield from weight_nodes.pop(name, ())
        runs_int8 = plan.runs_int8(node.name)
        read = node.renamed(by_int8 if runs_int8 else by_float)
        if node.name in dynamic.specs:
            made, read = dynamic.read_by(read, graph.metas[node.args[0].name])
            yield from made
        yield with_rounded_probabilities(read) if rounds_probabilities(node, plan) else read
        if node.name in activations:
            yield from _qdq(node.name, node.meta, qparams[node.name])

    ready = replace(graph, constants=constants).returning(by_float | floats)
    whole = rewrite(ready, with_roundings)
    rounded_inputs = [i for i in graph.inputs if i.name in activations]
    entries = [node for i in rounded_inputs for node in _qdq(i.name, i.meta, qparams[i.name])]
    whole = replace(whole, nodes=(*entries, *whole.nodes)).pruned()
    return in_bfloat16(whole, {n for n, t in plan.tensors.items() if t.runs == "bfloat16"})


def _floats_of_tied_weights(graph: Graph, plan: Plan) -> dict[str, str]:
    """Quantized weights that something reads in float as well -> the name of the floats."""
    weights = {name for name, tensor in plan.quantized.items() if tensor.kind == "weight"}
    in_float = {
        name for node in graph.nodes if not plan.reads_integers(node.name) for name in node.refs()
    }
    read = in_float | set(graph.output_names())
    return {name: _free(f"{name}_float", graph.constants) for name in sorted(weights & read)}


def _free(name: str, taken: Container[str]) -> str:
    """A name that no parameter of the model has."""
    while name in taken:
        name += "_"
    return name


def _check(graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> None:
    known = set(graph.metas) | set(graph.constants)
    unknown = sorted(set(plan.tensors) - known)
    if unknown:
        raise PlanError(
            f"the plan names {unknown[:5]}, which the graph does not have: "
            "make the plan from this graph"
        )
    missing = sorted(set(plan.quantized) - set(qparams))
    if missing:
        raise PlanError(f"qparams are missing for {missing[:5]}: calibrate with this plan")


def _quantized_weight(name: str, constants: dict[str, Tensor], qparams: QParams) -> list[Node]:
    """The nodes that read a weight back, whose integers are its constant."""
    integers = constants[name]
    if qparams.scheme.integers.bits <= 4:
        constants[name] = octavo_operators.pack_int4(integers)
    read = []
    parameters = qparams.of_rank(integers.dim())
    for kind, values in zip(("scale", "zero_point"), parameters, strict=True):
        read.append(_free(f"{name}_{kind}", constants))
        constants[read[-1]] = values.to(integers.device)
    return weight_readers(name, list(integers.shape), qparams.scheme, *read)


class _DynamicInputs:
    """The rounded inputs of dynamic layers; those that read one tensor alike share its rounding."""

    def __init__(self, plan: Plan) -> None:
        self.specs = {n: t.dynamic for n, t in plan.tensors.items() if t.dynamic is not None}
        self._made: dict[tuple[str, QSpec], str] = {}

    def read_by(self, node: Node, meta: TensorMeta | None) -> tuple[list[Node], Node]:
        """The node reading its rounded input, after the node that rounds it if that is new."""
        spec, source = self.specs[node.name], node.args[0]
        scheme = spec.scheme
        name = self._made.get((source.name, spec))
        nodes = []
        if name is None:
            taken = any(other == source.name for other, _ in self._made)
            name = f"{node.name}.input" if taken else f"{source.name}.dynamic"
            self._made[source.name, spec] = name
            args = (source, scheme.qmin, scheme.qmax, scheme.symmetric, scheme.per_token)
            nodes.append(Node(name, DYNAMIC, args, meta=meta))
        return nodes, with_arguments(node, input=Ref(name))


def rounds_probabilities(node: Node, plan: Plan) -> bool:
    """Whether a node is attention in int8 up to its second product, that with its values."""
    if node.op != "aten.scaled_dot_product_attention.default" or not plan.runs_int8(node.name):
        return False
    return arguments(node)["value"].name in plan.quantized


def with_rounded_probabilities(node: Node) -> Node:
    """Attention with int8 products: its probabilities are integers too."""
    q, k, v, mask, _, causal, scale, gqa = arguments(node).values()
    args = (q, k, v, mask, causal, scale, gqa, UINT8.qmax)
    return replace(node, op=ATTENTION, args=args, kwargs={})


def _qdq(name: str, meta: TensorMeta | None, qparams: QParams) -> list[Node]:
    assert meta is not None
    scheme = qparams.scheme
    single = (qparams.scale.item(), int(qparams.zero_point.item()))
    integers = (scheme.qmin, scheme.qmax, scheme.integers.storage)
    storage = str(scheme.integers.storage).removeprefix("torch.")
    stored = TensorMeta(meta.shape, storage)
    q, dq = f"{name}.quantized", f"{name}.dequantized"
    return [
        Node(q, QUANTIZE, (Ref(name), *single, *integers), meta=stored),
        Node(dq, DEQUANTIZE, (Ref(q), *single), meta=meta),
    ]
