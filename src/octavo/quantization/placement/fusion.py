"""Which nodes become one kernel."""

from __future__ import annotations

from octavo.graph.graph import Node
from octavo.quantization.placement.context import Context
from octavo.quantization.placement.placement import Placement
from octavo.quantization.reasons import ReasonKind


def fuse(context: Context, kept: set[str], placement: Placement) -> None:
    """Join kernels: the later of two convolutions that an addition joins takes the addition."""
    float_activations = _float_tail(context, kept, placement)
    placement.int8 = kept | float_activations
    claimed: set[str] = set()
    for node in reversed(context.graph.nodes):
        if node.name not in kept or not context.is_layer(node.name):
            continue
        chain = [node]
        after = context.graph.only_user(node.name)
        if after is not None and _takes_addition(context, node, after, kept, claimed):
            claimed.add(after.name)
            chain.append(after)
        _extend_by_activation(context, chain, placement.int8)
        placement.fused_into |= {inner.name: chain[-1].name for inner in chain[:-1]}
    for node in context.graph.nodes:
        if node.name in kept and node.name not in claimed and not context.is_layer(node.name):
            chain = [node]
            _extend_by_activation(context, chain, placement.int8)
            placement.fused_into |= {inner.name: chain[-1].name for inner in chain[:-1]}


def _float_tail(context: Context, kept: set[str], placement: Placement) -> set[str]:
    """Activations that a kernel applies itself though nothing int8 follows: its result is float."""
    tail = set()
    for name in kept:
        node = context.graph.by_name[name]
        after = context.graph.only_user(name)
        if after is None:
            continue
        reason = placement.reasons.get(after.name)
        if reason is not None and reason.kind is ReasonKind.RULE:
            continue
        if context.is_layer(name) and after.short_op in context.fusion(node).activations:
            tail.add(after.name)
    return tail


def _extend_by_activation(context: Context, chain: list[Node], int8: set[str]) -> None:
    after = context.graph.only_user(chain[-1].name)
    if after is not None and after.name in int8:
        chain += [after] if takes_activation(context, chain[-1], after, int8) else []


def _takes_addition(
    context: Context, layer: Node, addition: Node, kept: set[str], claimed: set[str]
) -> bool:
    if addition.short_op != "add" or not context.fusion(layer).addition:
        return False
    if addition.name not in kept or addition.name in claimed:
        return False
    operands = context.reads(addition)
    metas = [context.graph.metas[name] for name in operands]
    return len(metas) == 2 and metas[0] == metas[1] and metas[0] is not None


def takes_activation(context: Context, before: Node, node: Node, kept: set[str]) -> bool:
    """Whether the kernel of the node before applies an activation itself."""
    alone = context.graph.only_user(before.name) is node
    return before.name in kept and alone and node.short_op in context.fusion(before).activations
