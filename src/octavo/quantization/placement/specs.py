"""Which values are quantized, with which scheme, and which of them share one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS, WeightLayout, groups_of, is_depthwise
from octavo.quantization.placement.context import Context
from octavo.quantization.placement.placement import Placement
from octavo.quantization.qconfig import QSpec
from octavo.quantization.reasons import Reason, ReasonKind
from octavo.quantization.targets import FROM_ZERO, ROLES, SHARED, Target


def specify(context: Context, placement: Placement) -> None:
    """Which values are quantized, with which scheme, and which of them share one."""
    for node in context.graph.nodes:
        qconfig = context.qconfigs[node.name]
        layer = WEIGHT_LAYOUTS.get(node.short_op)
        if layer is not None and qconfig is not None and placement.on_integers(node.name):
            names = layer.weights_of(node, context.graph.constants)
            pairs = _sums_pairs(context, node, layer)
            spec = weight_spec(qconfig.weight, layer, context.target, pairs)
            placement.weights[node.name] = dict.fromkeys(names, spec)
    values = [i.name for i in context.graph.inputs] + [n.name for n in context.graph.nodes]
    for name in values:
        readers = [
            user.name
            for user in context.graph.users[name]
            if user.name in placement.int8 and name in context.reads(user)
        ]
        producer = context.graph.by_name.get(name)
        is_tensor = producer is None or producer.meta is not None
        made_in_float = placement.reasons.get(name)
        returned = context.target.integer_results and name in placement.int8
        if (readers or returned) and is_tensor and name not in placement.fused_into:
            placement.specs[name] = _activation_of(context, name, readers)
            words = f"{readers[0]} reads it in int8" if readers else "its kernel returns integers"
            read = Reason(ReasonKind.READ, words)
            placement.reasons[name] = made_in_float.and_also(read.words) if made_in_float else read
        elif made_in_float is None:
            placement.reasons[name] = (
                _unread(name in context.graph.leaving) if is_tensor else _NO_TENSOR
            )
    _share(context, placement, values)


_NO_TENSOR = Reason(ReasonKind.NO_TENSOR, "a size, or a list of tensors")


def _unread(leaves: bool) -> Reason:
    return Reason(ReasonKind.UNREAD, "leaves the model" if leaves else "nothing int8 reads it")


def _activation_of(context: Context, name: str, readers: list[str]) -> QSpec:
    """The spec of a value: its maker's if that is static, else that of the first who reads it."""
    producer = context.graph.by_name.get(name)
    makers = [name, *readers] if producer is not None else readers
    for node in makers:
        qconfig = context.qconfigs[node]
        if qconfig is not None and qconfig.mode == "static":
            assert qconfig.activation is not None
            fixed = context.target.fixed_outputs.get(producer.short_op if producer else "")
            default = context.target.qconfig.activation
            assert default is not None
            by_default = qconfig.activation.scheme == default.scheme
            return fixed if fixed is not None and by_default else qconfig.activation
    # A fused activation that no rule names: the layer's before it, which is the target's default.
    default_spec = context.target.qconfig.activation
    assert default_spec is not None
    return default_spec


def weight_spec(spec: QSpec, layer: WeightLayout, target: Target, sums_pairs: bool) -> QSpec:
    """The spec of a layer's weights, with one scale for each of its output channels if for any.

    Args:
        spec: as a qconfig has it.
        layer: where it has its outputs.
        target: where it will run.
        sums_pairs: whether an int8 kernel sums products of several of its inputs.
    """
    without_pairs = target.weight_without_pairs
    if without_pairs is not None and spec == target.qconfig.weight and not sums_pairs:
        spec = without_pairs
    if spec.scheme.channel_axis is None:
        return spec
    return replace(spec, scheme=replace(spec.scheme, channel_axis=layer.output_axis))


def _sums_pairs(context: Context, node: Node, layer: WeightLayout) -> bool:
    """Whether an int8 kernel sums products of several inputs; depthwise convolution does not."""
    if layer.input_axis is None:
        return False
    weight = context.graph.constants[arguments(node)["weight"].name]
    return not is_depthwise(groups_of(node), weight)


def _specify_operands(context: Context, placement: Placement, lead: Callable[[str], str]) -> None:
    """What products of activations read as the target's kernels want it, if nobody says how."""
    default = context.target.qconfig.activation
    assert default is not None
    for node in context.graph.nodes:
        operands = context.target.operands.get(node.short_op)
        if operands is None or node.name not in placement.int8:
            continue
        for first in map(lead, context.reads(node)):
            spec, producer = placement.specs.get(first), context.graph.by_name.get(first)
            from_zero = producer is not None and producer.short_op in FROM_ZERO
            if spec is not None and spec.scheme == default.scheme and not from_zero:
                placement.specs[first] = replace(spec, scheme=operands.scheme)


def _share(context: Context, placement: Placement, values: list[str]) -> None:
    """Join the inputs and the output of every shared operator to one scale, the first one's."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while name in leader:
            name = leader[name]
        return name

    order = {name: index for index, name in enumerate(values)}
    for node in context.graph.nodes:
        if node.name in placement.int8 and ROLES.get(node.short_op) == SHARED:
            for name in context.reads(node):
                first, second = sorted((lead(name), lead(node.name)), key=order.__getitem__)
                if first != second:
                    leader[second] = first
    _specify_operands(context, placement, lead)
    for name in values:
        first = lead(name)
        if first != name and name in placement.specs:
            placement.shares[name] = first
            placement.specs[name] = placement.specs.get(first, placement.specs[name])
