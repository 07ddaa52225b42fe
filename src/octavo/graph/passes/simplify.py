"""One spelling for one thing: identities go, and rare spellings become the usual ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octavo.graph.graph import Graph, Node, Ref, TensorMeta, map_refs
from octavo.graph.passes.training import DROPOUTS

# In evaluation mode, on values that nothing writes to, these return their argument.
_IDENTITIES = frozenset({"clone", "alias", "detach", "lift_fresh_copy", "contiguous"})
# These return their argument where the result has its dtype and sizes: an open size that is
# expanded is not 1, and one open size is given by the others.
_CASTS = frozenset({"to", "_to_copy", "type_as"})
_EXPANSIONS = frozenset({"expand", "expand_as"})
_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten"})
_TO_THE_END = 2**63 - 1


def remove_identities(graph: Graph) -> Graph:
    """Without dropout, clone, contiguous, and casts, expansions, reshapes and slices to what a
    tensor is already.
    """
    same: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = node.renamed(same)
        source = node.args[0].name if node.args and isinstance(node.args[0], Ref) else ""
        if source and _is_identity(node, graph.meta(source)):
            same[node.name] = source
        else:
            nodes.append(node)
    outputs = map_refs(graph.outputs, lambda ref: Ref(same.get(ref.name, ref.name)))
    return replace(graph, nodes=tuple(nodes), outputs=outputs).pruned()


def _is_identity(node: Node, source: TensorMeta | None) -> bool:
    if node.short_op in DROPOUTS:
        return not node.args[2]
    if node.short_op in _IDENTITIES:
        return True
    if source is None or node.meta != source:
        return False
    if node.short_op in _RESHAPES:
        return source.shape.count(None) <= 1
    if node.short_op == "slice":
        return _is_whole(node, source)
    return node.short_op in _CASTS | _EXPANSIONS


def _is_whole(node: Node, source: TensorMeta) -> bool:
    """Whether a slice that is as long as its source, for all that is known, is all of it."""
    defaults = (0, None, None, 1)
    axis, start, end, step = node.args[1:] + defaults[len(node.args) - 1 :]
    is_open = source.shape[axis] is None
    return not is_open or (start in (None, 0) and end in (None, _TO_THE_END) and step == 1)


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
