"""Which nodes can be quantized at all, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS, WeightLayout
from octavo.quantization.placement.context import Context
from octavo.quantization.placement.placement import Placement
from octavo.quantization.qconfig import QSpec, Rule
from octavo.quantization.reasons import Reason, ReasonKind
from octavo.quantization.targets import LOOKUP, ROLES, SHARED, WEIGHTED

_ELEMENTWISE = ("add", "sub", "mul")
# Of a layer's result, by how the layer runs.
RETURNING_FLOATS = {
    "dynamic": Reason(ReasonKind.RETURNS_FLOAT, "its kernel quantizes its input at each call"),
    "weight_only": Reason(
        ReasonKind.RETURNS_FLOAT, "its weights are dequantized where they are used"
    ),
}


def place_without_ranges(context: Context, placement: Placement) -> None:
    """Tables, and layers that are dynamic or weight-only: nothing else is decided with them."""
    for node in context.graph.nodes:
        qconfig = context.qconfigs[node.name]
        role = ROLES.get(node.short_op)
        if qconfig is None or role not in (WEIGHTED, LOOKUP):
            continue
        if role == WEIGHTED and qconfig.mode == "static":
            continue
        obstacle = _obstacle(context, node)
        if obstacle is not None:
            placement.reasons[node.name] = Reason(ReasonKind.TENSORS, obstacle)
        elif role == WEIGHTED and qconfig.mode == "dynamic":
            assert qconfig.activation is not None
            placement.dynamic[node.name] = range_of_input(
                WEIGHT_LAYOUTS[node.short_op], qconfig.activation
            )
            placement.reasons[node.name] = RETURNING_FLOATS["dynamic"]
        else:
            placement.weight_only.add(node.name)
            placement.reasons[node.name] = RETURNING_FLOATS["weight_only"]


def range_of_input(layer: WeightLayout, activation: QSpec) -> QSpec:
    """Per token where the layer sums over the last axis; a convolution sums over others."""
    sums_last_axis = layer.input_axis in (-1, None)
    per_token = activation.scheme.per_token and sums_last_axis
    return replace(activation, scheme=replace(activation.scheme, per_token=per_token))


def place_in_bfloat16(
    context: Context, rules: Mapping[str, Rule | None], placement: Placement
) -> None:
    """Layers that rules ask to compute in bfloat16, where that can be."""
    for node in context.graph.nodes:
        rule = rules[node.name]
        if rule is None or rule.precision != torch.bfloat16:
            continue
        layer = WEIGHT_LAYOUTS.get(node.short_op)
        if layer is None or layer.input_axis is None:
            obstacle: str | None = f"{node.short_op} is no convolution or linear layer"
        else:
            obstacle = _obstacle_of_tensors(context, node, layer)
        words = f"in bfloat16, the rule {rule}"
        if obstacle is None:
            placement.bfloat16.add(node.name)
        else:
            words = f"the rule {rule}, but {obstacle}"
        placement.reasons[node.name] = Reason(ReasonKind.RULE, words)


def candidates(context: Context, placement: Placement) -> set[str]:
    """Nodes that can run in static int8, and that the user or the target's default wants so."""
    candidates = set()
    for node in context.graph.nodes:
        if node.name in placement.reasons:
            continue
        obstacle = _obstacle(context, node)
        if obstacle is None:
            candidates.add(node.name)
        else:
            placement.reasons[node.name] = Reason(ReasonKind.TENSORS, obstacle)
    return candidates


def _obstacle(context: Context, node: Node) -> str | None:
    """Why a node cannot be quantized; ``None`` where it can."""
    role = ROLES.get(node.short_op)
    if role in (WEIGHTED, LOOKUP):
        return _obstacle_of_layer(context, node)
    if node.meta is None and role != SHARED:
        return "its result is not a tensor"
    reads = context.reads(node)
    if not reads:
        return "nothing that it reads is quantized"
    if not all(context.is_float(name) for name in (*reads, node.name)):
        return "its tensors are not float32"
    if node.short_op in _ELEMENTWISE:
        tensors = [arg for arg in node.args[:2] if isinstance(arg, Ref)]
        if len(tensors) != 2 or any(t.name in context.graph.constants for t in tensors):
            return "one of its operands is a constant"
        alpha = arguments(node).get("alpha", 1)
        if alpha != 1:
            return f"its alpha is {alpha}"
    if node.short_op in ("pad", "constant_pad_nd") and _pads_with_something(node):
        return "it pads with another value than zero"
    return None


def _obstacle_of_layer(context: Context, node: Node) -> str | None:
    layer = WEIGHT_LAYOUTS[node.short_op]
    obstacle = _obstacle_of_tensors(context, node, layer)
    if obstacle is not None:
        return obstacle
    if not context.reads(node) and layer.input is not None:
        return "its input is a constant"
    if node.op.endswith(".padding"):
        return 'its padding="same" differs between the sides'
    qconfig = context.qconfigs[node.name]
    if qconfig is None:
        return None
    misfits = (
        qconfig.weight.scheme.misfit(f"weight {name}", context.graph.constants[name].shape)
        for name in layer.weights_of(node, context.graph.constants)
    )
    return next(filter(None, misfits), None)


def _obstacle_of_tensors(context: Context, node: Node, layer: WeightLayout) -> str | None:
    """Why a layer's numbers cannot be other ones."""
    weights = layer.weights_of(node, context.graph.constants)
    if not weights:
        return "its weight is not a constant"
    if not all(context.graph.constants[name].dtype.is_floating_point for name in weights):
        return "its weights are not float"
    if not all(context.is_float(name) for name in (*context.reads(node), node.name)):
        return "its tensors are not float32"
    return None


def _pads_with_something(node: Node) -> bool:
    """Zero is exact in every scheme, and what reflects or repeats makes no new value."""
    given = arguments(node)
    return given.get("mode", "constant") == "constant" and bool(given["value"])
