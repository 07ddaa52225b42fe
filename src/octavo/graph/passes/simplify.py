"""One spelling for one thing: identities go, and rare spellings become the usual ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.passes.training import DROPOUTS
from octavo.graph.rewrite import rewrite

# In evaluation mode, on values that nothing writes to, these return their argument.
_IDENTITIES = frozenset({"clone", "alias", "detach", "lift_fresh_copy", "contiguous"})
# These return their argument where the result has its dtype and sizes: an open size that is
# expanded is not 1, and one open size is given by the others.
_CASTS = frozenset({"to", "_to_copy", "type_as"})
_EXPANSIONS = frozenset({"expand", "expand_as"})
_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten"})
_PADDINGS = frozenset({"pad", "constant_pad_nd"})
_TO_THE_END = 2**63 - 1


def remove_identities(graph: Graph) -> Graph:
    """Without dropout, clone, contiguous, and casts, expansions, reshapes, slices and paddings to
    what a tensor is already.
    """

    def without_identity(node: Node) -> Node | Ref:
        source = node.args[0] if node.args else None
        is_read = isinstance(source, Ref) and _is_identity(node, graph.meta(source.name))
        return source if is_read else node  # type: ignore[return-value]

    return rewrite(graph, without_identity)


def _is_identity(node: Node, source: TensorMeta | None) -> bool:
    if node.short_op in DROPOUTS:
        given = arguments(node)
        return not (given["train"] and given["p"])
    if node.short_op in _IDENTITIES:
        return True
    if source is None or node.meta != source:
        return False
    if node.short_op in _RESHAPES:
        return source.shape.count(None) <= 1
    if node.short_op == "slice":
        return _is_whole(node, source)
    if node.short_op in _PADDINGS:
        return not any(node.args[1])
    return node.short_op in _CASTS | _EXPANSIONS


def _is_whole(node: Node, source: TensorMeta) -> bool:
    """Whether a slice that is as long as its source, for all that is known, is all of it."""
    _, axis, start, end, step = arguments(node).values()
    is_open = source.shape[axis] is None
    return not is_open or (start in (None, 0) and end in (None, _TO_THE_END) and step == 1)


def normalise_spelling(graph: Graph) -> Graph:
    """One operator for one meaning, so that later stages know fewer."""
    return rewrite(graph, lambda node: _SPELLINGS.get(node.op, _as_it_is)(node, graph))


def _as_it_is(node: Node, graph: Graph) -> Node:
    return node


def _relu6(node: Node, graph: Graph) -> Node:
    return replace(node, op="aten.hardtanh.default", args=(node.args[0], 0.0, 6.0))


def _inference_batch_norm(node: Node, graph: Graph) -> Node:
    x, weight, bias, mean, variance, momentum, eps = arguments(node).values()
    args = (x, weight, bias, mean, variance, False, momentum, eps, False)
    meta = next((item.meta for item in graph.users[node.name]), node.meta)
    return replace(node, op="aten.batch_norm.default", args=args, meta=meta)


def _item(node: Node, graph: Graph) -> Node | Ref:
    """What takes the result out of such a batch norm's three is that result."""
    source: Ref = node.args[0]
    maker = graph.producer(source)
    return source if maker is not None and maker.op == _INFERENCE_BATCH_NORM else node


def _view(node: Node, graph: Graph) -> Node:
    return replace(node, op="aten.reshape.default")


def _explicit_padding(node: Node, graph: Graph) -> Node:
    """A convolution with ``padding="same"`` or ``"valid"`` given as numbers, where both sides are
    equal.
    """
    given = arguments(node)
    weight, padding, dilation = (given[name] for name in ("weight", "padding", "dilation"))
    if not isinstance(weight, Ref) or weight.name not in graph.constants:
        return node
    kernel = graph.constants[weight.name].shape[2:]
    dilation = list(dilation) * (len(kernel) if len(dilation) == 1 else 1)
    totals = [
        d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
    ]
    if any(total % 2 for total in totals):
        return node
    explicit = with_arguments(node, padding=[total // 2 for total in totals])
    return replace(explicit, op=f"aten.{node.short_op}.default")


_INFERENCE_BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
_SPELLINGS: dict[str, Callable[[Node, Graph], Node | Ref]] = {
    "aten.relu6.default": _relu6,
    _INFERENCE_BATCH_NORM: _inference_batch_norm,
    "python.getitem": _item,
    # A view may fail on another memory format than the captured one; a reshape does not.
    "aten.view.default": _view,
    "aten._unsafe_view.default": _view,
    **{f"aten.conv{n}d.padding": _explicit_padding for n in (1, 2, 3)},
}
