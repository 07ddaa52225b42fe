"""From a float graph, a plan and qparams to the quantized graph, in canonical QDQ form.

Each quantized activation ``x`` becomes ``x -> x.quantized -> x.dequantized``; each quantized weight
is stored as integers and read through ``<weight>.dequantized``. Calibration and training end here
alike: both give weights and qparams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from octavo import ops
from octavo.affine import QParams
from octavo.errors import PlanError
from octavo.graph import Graph, Node, Ref, TensorMeta, map_refs
from octavo.plan import Plan


def insert_qdq(graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> Graph:
    """The quantized graph. Its constants are tensors of its own, none of the user's.

    A node that runs in int8 reads dequantized values. One that runs in float reads the dequantized
    value of what an int8 kernel made, and the original of what was made in float.

    Args:
        graph: the canonical float graph.
        plan: made for that graph.
        qparams: for every tensor that the plan quantizes.

    Raises:
        PlanError: the plan names tensors that the graph has not, or qparams are missing.
    """
    _check(graph, plan, qparams)
    quantized = plan.quantized
    constants = {name: tensor.detach().clone() for name, tensor in graph.constants.items()}
    weight_nodes = {}
    for name, tensor in quantized.items():
        if tensor.kind == "weight":
            weight_nodes[name] = _quantized_weight(name, constants, qparams[name])
    activations = {name for name, tensor in quantized.items() if tensor.kind != "weight"}
    made_in_int8 = {name for name in activations if plan.runs_int8(name)}
    dequantized = {name: f"{name}.dequantized" for name in quantized}
    by_int8 = dequantized
    by_float = {n: d for n, d in dequantized.items() if n in made_in_int8 or n in weight_nodes}

    nodes: list[Node] = []
    metas = graph.metas()
    for given in graph.inputs:
        if given.name in activations:
            nodes += _qdq(given.name, given.meta, qparams[given.name])
    for node in graph.nodes:
        for name in node.refs():
            if name in weight_nodes:
                nodes.append(weight_nodes.pop(name))
                by_float[name] = dequantized[name]
        nodes.append(node.renamed(by_int8 if plan.runs_int8(node.name) else by_float))
        if node.name in activations:
            nodes += _qdq(node.name, metas[node.name], qparams[node.name])
    outputs = map_refs(graph.outputs, lambda ref: Ref(by_float.get(ref.name, ref.name)))
    return replace(graph, nodes=tuple(nodes), constants=constants, outputs=outputs).pruned()


def _check(graph: Graph, plan: Plan, qparams: Mapping[str, QParams]) -> None:
    known = set(graph.metas()) | set(graph.constants)
    unknown = sorted(set(plan.tensors) - known)
    if unknown:
        raise PlanError(f"the plan names {unknown[:5]}, which the graph has not: plan it again")
    missing = sorted(set(plan.quantized) - set(qparams))
    if missing:
        raise PlanError(f"there are no qparams for {missing[:5]}: calibrate with this plan")


def _quantized_weight(name: str, constants: dict[str, Tensor], qparams: QParams) -> Node:
    """Replace the constant by integers; the node that reads them back."""
    scheme, weight = qparams.scheme, constants[name]
    meta = TensorMeta(tuple(weight.shape), "float32")
    scale, zero_point = qparams.scale.to(weight.device), qparams.zero_point.to(weight.device)
    low, high, dtype = scheme.qmin, scheme.qmax, scheme.integers.storage
    if scheme.channel_axis is None:
        single = (scale.item(), int(zero_point.item()))
        constants[name] = ops.quantize(weight, *single, low, high, dtype)
        return Node(
            f"{name}.dequantized", "octavo.dequantize.default", (Ref(name), *single), meta=meta
        )
    axis = scheme.channel_axis
    constants[name] = ops.quantize_channels(weight, scale, zero_point, axis, low, high, dtype)
    constants[f"{name}_scale"], constants[f"{name}_zero_point"] = scale, zero_point
    args = (Ref(name), Ref(f"{name}_scale"), Ref(f"{name}_zero_point"), axis)
    return Node(f"{name}.dequantized", "octavo.dequantize_channels.default", args, meta=meta)


def _qdq(name: str, meta: TensorMeta | None, qparams: QParams) -> list[Node]:
    assert meta is not None
    scheme = qparams.scheme
    single = (qparams.scale.item(), int(qparams.zero_point.item()))
    integers = (scheme.qmin, scheme.qmax, scheme.integers.storage)
    stored = TensorMeta(meta.shape, scheme.dtype)
    q, dq = f"{name}.quantized", f"{name}.dequantized"
    return [
        Node(q, "octavo.quantize.default", (Ref(name), *single, *integers), meta=stored),
        Node(dq, "octavo.dequantize.default", (Ref(q), *single), meta=meta),
    ]
