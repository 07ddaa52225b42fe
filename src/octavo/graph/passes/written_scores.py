"""What a model writes in front of the softmax of attention: a product of queries and keys, scaled
anywhere, with masks and biases that are added or filled in.

Tested in tests/graph/passes/test_written_attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.graph.graph import Graph, Node, Ref, TensorMeta

Shape = tuple[int | None, ...]

# A score this low makes a probability of 0 whether it is filled in or added, and where it is all
# that a target sees, other scores vanish beside it.
_HIDDEN = -1e9
# Through these a mask stays a mask.
MASK_CARRIERS = frozenset(
    """
    add masked_fill where to contiguous clone unsqueeze squeeze view reshape flatten unflatten
    transpose permute expand repeat narrow select slice getitem
    """.split()
)
_SCALINGS = tuple(f"aten.{name}.{of}" for name in ("mul", "div") for of in ("Tensor", "Scalar"))
_VIEWS = frozenset("reshape.default unflatten.int flatten.using_ints unsqueeze.default".split())
_LOOKS = frozenset("reshape flatten unflatten squeeze unsqueeze transpose permute select".split())


@dataclass(frozen=True)
class Term:
    """What is added to scores.

    Attributes:
        mask: a tensor.
        filled: where the mask is boolean, what is added where it is true, and where it is not.
        factor: by which it is multiplied.
        shape: of the scores, where it is added.
    """

    mask: Ref
    shape: Shape
    filled: tuple[float, float] | None = None
    factor: float = 1.0

    def scaled(self, factor: float) -> Term:
        return replace(self, factor=factor * self.factor)

    @property
    def values(self) -> tuple[float, ...]:
        """What is added where a boolean mask says so."""
        return () if self.filled is None else tuple(self.factor * value for value in self.filled)

    @property
    def hides(self) -> bool:
        """Whether what is filled in is still so low that it makes a probability of 0."""
        return self.filled is None or min(self.values) <= _HIDDEN


@dataclass(frozen=True)
class Scores:
    """What a softmax reads.

    Attributes:
        query, key: of the product ``query @ key``, the key ``[..., channels, sources]``.
        shape: of the product.
        scale: of the product.
        terms: what is added.
        scalings: nodes in front of the product that are left out, since ``scale`` has their number
            -> what they multiply.
        views: shape of the scores -> the arguments of the reshape that gives it, where that does.
    """

    query: Ref
    key: Ref
    shape: Shape
    scale: float
    terms: tuple[Term, ...] = ()
    scalings: Mapping[str, Ref] = field(default_factory=dict)
    views: Mapping[Shape, Sequence[Any]] = field(default_factory=dict)

    def plus(self, term: Term) -> Scores:
        return replace(self, terms=(*self.terms, term))

    def seen_as(self, node: Node) -> Scores:
        """The scores in another view."""
        assert node.meta is not None
        told = node.args[1] if node.short_op == "reshape" else ()
        return replace(self, views={**self.views, node.meta.shape: told})

    def told(self, shape: Shape) -> Sequence[Any] | None:
        """The arguments of a reshape to this shape, the last one aside where it is not of scores;
        ``None`` where they are not known.
        """
        if shape.count(None) < 2:
            return [-1 if size is None else size for size in shape]
        same = (sizes for seen, sizes in self.views.items() if seen[:-1] == shape[:-1])
        return next(same, None) or None

    def is_vague(self, shape: Shape) -> bool:
        """Whether more than one size in front of the last two is open."""
        sizes = zip(shape, self.views.get(shape) or shape, strict=True)
        known = [size is not None or (type(arg) is int and arg > 0) for size, arg in sizes]
        return known[:-2].count(False) > 1


def scores_of(graph: Graph, arg: Any) -> Scores | None:
    """What makes a value that nothing but its one reader reads, if that is scores."""
    node = graph.producer(arg)
    if node is None or graph.only_user(node.name) is None or not _is_float(node.meta):
        return None
    read = _PARTS.get(node.op)
    return None if read is None else read(graph, node)


def looks_at_scores(graph: Graph, node: Node) -> bool:
    """Whether a node only sees scores in another way, targets and sources as they are."""
    if node.op.removeprefix("aten.") not in _VIEWS:
        return False
    before, after = graph.metas[node.args[0].name], node.meta
    same = before is not None and after is not None and before.shape[-2:] == after.shape[-2:]
    return same and after is not None and len(after.shape) > 2


def hides_all(graph: Graph, terms: Sequence[Term]) -> bool:
    """Whether what is added may be minus infinity for all sources of a target."""
    hiding = [term for term in terms if _may_hide(graph, term.mask) or -math.inf in term.values]
    if len(hiding) != 1:
        return bool(hiding)
    (term,) = hiding
    constant = graph.constant(term.mask)
    if constant is None:
        return True
    hidden = constant.isneginf() if term.filled is None else constant == (term.filled[0] != 0)
    return bool(hidden.all(-1).any())


def _may_hide(graph: Graph, arg: Any) -> bool:
    """Whether a mask may have minus infinity in it, as far as is told by what carries masks."""
    constant, node = graph.constant(arg), graph.producer(arg)
    if constant is not None:
        return constant.is_floating_point() and bool(constant.isneginf().any())
    meta = graph.meta(arg.name)
    if node is None:
        return meta is not None and meta.dtype.startswith(("float", "bfloat"))
    if node.short_op not in MASK_CARRIERS:
        return False
    numbers = [arg for arg in node.args if isinstance(arg, float)]
    return -math.inf in numbers or any(_may_hide(graph, Ref(name)) for name in node.refs())


def _is_float(meta: TensorMeta | None) -> bool:
    return meta is not None and meta.dtype == "float32" and len(meta.shape) > 2


def _number(graph: Graph, arg: Any) -> float | None:
    """A number other than 0, or a constant that is one."""
    constant = graph.constant(arg)
    if constant is not None and constant.numel() == 1 and constant.dim() < 2:
        arg = constant.item()
    if isinstance(arg, bool) or not isinstance(arg, int | float):
        return None
    return float(arg) if arg and not math.isnan(arg) else None


def _factor(graph: Graph, node: Node) -> tuple[Any, float] | None:
    """What is multiplied by a number, and the number."""
    if node.op not in _SCALINGS:
        return None
    one, other = node.args[:2]
    number = _number(graph, other)
    if number is None and node.short_op == "mul":
        one, number = other, _number(graph, one)
    meta = graph.metas.get(one.name) if isinstance(one, Ref) else None
    if number is None or not math.isfinite(number) or meta is None or meta != node.meta:
        return None
    return one, 1 / number if node.short_op == "div" else number


def _operand(graph: Graph, ref: Ref) -> tuple[float, dict[str, Ref]]:
    """The numbers by which an operand of the product is multiplied, and the nodes that do it."""
    factor, scalings = 1.0, {}
    node = graph.producer(ref)
    while node is not None and graph.only_user(node.name) is not None:
        scaled = _factor(graph, node)
        if scaled is not None:
            scalings[node.name] = scaled[0]
            factor *= scaled[1]
        elif node.short_op not in _LOOKS:
            break
        node = graph.producer(node.args[0] if scaled is None else scaled[0])
    return factor, scalings


def _product(graph: Graph, node: Node) -> Scores | None:
    left, right = node.args[:2]
    metas = [graph.metas.get(ref.name) if isinstance(ref, Ref) else None for ref in (left, right)]
    if not all(map(_is_float, metas)) or left == right or node.meta is None:
        return None
    q_factor, q_scalings = _operand(graph, left)
    k_factor, k_scalings = _operand(graph, right)
    scalings = {**q_scalings, **k_scalings}
    return Scores(left, right, node.meta.shape, q_factor * k_factor, scalings=scalings)


def _term(graph: Graph, arg: Any, node: Node) -> Term | None:
    """A tensor of floats that is added, and broadcast to the scores."""
    meta = graph.meta(arg.name) if isinstance(arg, Ref) else None
    if meta is None or meta.dtype != "float32" or len(meta.shape) < 2 or node.meta is None:
        return None
    return Term(arg, node.meta.shape)


def _inner(graph: Graph, arg: Any, node: Node) -> Scores | None:
    """Scores that a node leaves as large as they are."""
    scores = scores_of(graph, arg)
    return scores if scores and graph.metas[arg.name] == node.meta else None


def _scaled(graph: Graph, node: Node) -> Scores | None:
    factor = _factor(graph, node)
    scores = None if factor is None else _inner(graph, factor[0], node)
    if scores is None or factor is None:
        return None
    terms = tuple(term.scaled(factor[1]) for term in scores.terms)
    return replace(scores, scale=scores.scale * factor[1], terms=terms)


def _added(graph: Graph, node: Node) -> Scores | None:
    if node.kwargs:
        return None
    one, other = node.args[:2]
    for product, added in ((one, other), (other, one)):
        term, scores = _term(graph, added, node), _inner(graph, product, node)
        if term is not None and scores is not None:
            return scores.plus(term)
    return None


def _filled(graph: Graph, node: Node) -> Scores | None:
    scores, mask, value = node.args
    return _hidden(graph, node, scores, mask, value, where=True)


def _chosen(graph: Graph, node: Node) -> Scores | None:
    mask, one, other = node.args
    if _number(graph, other) is not None:
        return _hidden(graph, node, one, mask, other, where=False)
    return _hidden(graph, node, other, mask, one, where=True)


def _hidden(
    graph: Graph, node: Node, arg: Any, mask: Any, value: Any, where: bool
) -> Scores | None:
    """Scores that have a number instead where a mask is true, or is not."""
    number, scores = _number(graph, value), _inner(graph, arg, node)
    meta = graph.meta(mask.name) if isinstance(mask, Ref) else None
    if number is None or scores is None or meta is None or meta.dtype != "bool":
        return None
    if len(meta.shape) < 2:  # the operator wants an axis for targets
        return None
    assert node.meta is not None
    filled = (number, 0.0) if where else (0.0, number)
    return scores.plus(Term(mask, node.meta.shape, filled))


def _viewed(graph: Graph, node: Node) -> Scores | None:
    scores = scores_of(graph, node.args[0])
    return scores.seen_as(node) if scores and looks_at_scores(graph, node) else None


_PARTS: dict[str, Callable[[Graph, Node], Scores | None]] = {
    **dict.fromkeys(("aten.matmul.default", "aten.bmm.default"), _product),
    **dict.fromkeys(_SCALINGS, _scaled),
    "aten.add.Tensor": _added,
    **dict.fromkeys(("aten.masked_fill.Scalar", "aten.masked_fill.Tensor"), _filled),
    **dict.fromkeys(
        ("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf"), _chosen
    ),
    **{f"aten.{name}": _viewed for name in _VIEWS},
}
