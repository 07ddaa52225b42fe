"""One spelling for one thing: identities go, and rare spellings become the usual ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octavo.graph import Graph, Node, Ref, TensorMeta, map_refs

# In evaluation mode, on values that nothing writes to, these return their argument.
_IDENTITIES = frozenset({"clone", "alias", "detach", "lift_fresh_copy", "contiguous"})
_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


def remove_identities(graph: Graph) -> Graph:
    """Without dropout, clone, contiguous, and casts to the dtype that a tensor has."""
    metas = graph.metas()
    same: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = node.renamed(same)
        source = node.args[0].name if node.args and isinstance(node.args[0], Ref) else ""
        if source and _is_identity(node, metas.get(source)):
            same[node.name] = source
        else:
            nodes.append(node)
    outputs = map_refs(graph.outputs, lambda ref: Ref(same.get(ref.name, ref.name)))
    return replace(graph, nodes=tuple(nodes), outputs=outputs).pruned()


def _is_identity(node: Node, source: TensorMeta | None) -> bool:
    if node.short_op in _DROPOUTS:
        return not node.args[2]
    if node.short_op in ("to", "_to_copy", "type_as"):
        return node.meta is not None and node.meta == source
    return node.short_op in _IDENTITIES


def _relu6(node: Node) -> Node:
    return replace(node, op="aten.hardtanh.default", args=(node.args[0], 0.0, 6.0))


def _inference_batch_norm(node: Node) -> Node:
    x, weight, bias, mean, variance, momentum, eps = node.args
    args = (x, weight, bias, mean, variance, False, momentum, eps, False)
    return replace(node, op="aten.batch_norm.default", args=args)


def _view(node: Node) -> Node:
    return replace(node, op="aten.reshape.default")


_SPELLINGS: dict[str, Callable[[Node], Node]] = {
    "aten.relu6.default": _relu6,
    "aten._native_batch_norm_legit_no_training.default": _inference_batch_norm,
    # A view may fail on another memory format than the captured one; a reshape does not.
    "aten.view.default": _view,
    "aten._unsafe_view.default": _view,
}


def normalise_spelling(graph: Graph) -> Graph:
    """One operator for one meaning, so that later stages know fewer."""
    nodes = [_SPELLINGS.get(node.op, replace)(node) for node in graph.nodes]
    single = {n.name for n in nodes if n.op == "aten.batch_norm.default"}
    same: dict[str, str] = {}
    kept = []
    for node in nodes:
        if node.op == "python.getitem" and node.args[0].name in single:
            same[node.name] = node.args[0].name
            continue
        kept.append(_explicit_padding(node.renamed(same), graph))
    metas = {n.name: n.meta for n in nodes}
    named = {old: name for name, old in same.items()}
    kept = [replace(n, meta=metas[named[n.name]]) if n.name in named else n for n in kept]
    outputs = map_refs(graph.outputs, lambda ref: Ref(same.get(ref.name, ref.name)))
    return replace(graph, nodes=tuple(kept), outputs=outputs)


def _explicit_padding(node: Node, graph: Graph) -> Node:
    """A convolution with ``padding="same"`` or ``"valid"`` given as numbers, where both sides are
    equal.
    """
    if not (node.short_op in ("conv1d", "conv2d", "conv3d") and node.op.endswith(".padding")):
        return node
    defaults = (None, None, None, [1], "valid", [1], 1)
    x, weight, bias, stride, padding, dilation, groups = node.args + defaults[len(node.args) :]
    if not isinstance(weight, Ref) or weight.name not in graph.constants:
        return node
    kernel = graph.constants[weight.name].shape[2:]
    dilation = list(dilation) * (len(kernel) if len(dilation) == 1 else 1)
    totals = [
        d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
    ]
    if any(total % 2 for total in totals):
        return node
    sides = [total // 2 for total in totals]
    args = (x, weight, bias, stride, sides, dilation, groups)
    return replace(node, op=f"aten.{node.short_op}.default", args=args)
