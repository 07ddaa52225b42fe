"""Attention that a model writes out becomes the one operator that there is for it.

``softmax(q @ k^T * scale + bias + mask) @ v`` is what most models write that do not call
``scaled_dot_product_attention``, with views in between where windows or heads are part of a batch.
As one operator it is planned, quantized and exported as one. Only what nothing else reads is taken
in. Where a mask of minus infinity leaves a target nothing to see, what is written is NaN, where the
operator would be 0: masks that may do so are NaN there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.operators import arguments
from octavo.graph.passes.written_scores import (
    Scores,
    Shape,
    Term,
    hides_all,
    looks_at_scores,
    scores_of,
)
from octavo.graph.rewrite import Part, rewrite

_SOFTMAX = frozenset({"softmax", "_softmax"})
# Beside it scores vanish, however large they are.
_LOWEST = -1e30
_PRODUCTS = frozenset({"aten.matmul.default", "aten.bmm.default"})


@dataclass(frozen=True)
class _Written:
    """Attention as it is written.

    Attributes:
        scores: what its softmax reads.
        value: of the second product.
        probabilities: their shape in the second product.
        last: the second product.
        shape: of the scores in the operator: all that is added can be added to it.
    """

    scores: Scores
    value: Ref
    probabilities: Shape
    last: Node
    shape: Shape


def written_attention(graph: Graph) -> Graph:
    """The graph with ``scaled_dot_product_attention`` in place of attention that is written out."""
    found = [
        _found(graph, node) for node in graph.nodes if node.short_op in ("softmax", "_softmax")
    ]
    written = {one.last.name: one for one in found if one is not None}
    scalings = {name: x for one in written.values() for name, x in one.scores.scalings.items()}
    made: set[str] = set()  # several read one mask

    def attending(node: Node) -> Iterator[Part]:
        if node.name in scalings:
            yield scalings[node.name]
        elif node.name in written:
            nodes = _Nodes(graph, scalings)
            _attend(nodes, written[node.name])
            yield from (part for part in nodes.made if part.name not in made)
            made.update(part.name for part in nodes.made)
        else:
            yield node

    return rewrite(graph, attending) if written else graph


def _found(graph: Graph, softmax: Node) -> _Written | None:
    """The attention that a softmax is part of."""
    given, meta = arguments(softmax), softmax.meta
    if meta is None or given["dim"] not in (-1, len(meta.shape) - 1):
        return None
    if str(given.get("dtype")) not in ("None", "torch.float32"):
        return None
    scores = scores_of(graph, given["self"])
    node, after = softmax, graph.only_user(softmax.name)
    while after is not None and scores is not None and looks_at_scores(graph, after):
        scores = scores.seen_as(after)
        node, after = after, graph.only_user(after.name)
    if scores is None or after is None or after.op not in _PRODUCTS or node.meta is None:
        return None
    left, value = after.args[:2]
    shapes = [term.shape for term in scores.terms] or [scores.shape]
    one = _Written(scores, value, node.meta.shape, after, max(shapes, key=len))
    return one if left == Ref(node.name) != value and _fits(graph, one) else None


def _fits(graph: Graph, one: _Written) -> bool:
    """Whether sizes and types are those of attention, and known where they have to be."""
    scores, last, shape = one.scores, one.last.meta, one.shape
    metas = [graph.metas.get(ref.name) for ref in (scores.query, scores.key, one.value)]
    if last is None or any(meta is None or meta.dtype != "float32" for meta in metas):
        return False
    q, k, v = (meta.shape for meta in metas if meta is not None)
    if not q[:-2] == k[:-2] == scores.shape[:-2] or v[:-2] != one.probabilities[:-2]:
        return False
    if q[-1] is None or v[-1] is None or not all(term.hides for term in scores.terms):
        return False
    # Of two open sizes in a row nobody knows whether a view has left them as they were.
    if scores.views and any(map(scores.is_vague, (scores.shape, shape, last.shape))):
        return False
    looks = [(scores.shape, shape), (v, shape), (shape, last.shape)]
    told = all(a[:-2] == b[:-2] or scores.told(b) for a, b in looks)
    return told and all(_is_seen(graph, term, shape) for term in scores.terms)


def _is_seen(graph: Graph, term: Term, shape: Shape) -> bool:
    """Whether a mask can be added to scores that are seen in another way: its axes in front of
    those that are seen alike have the size 1, or all that scores have there.
    """
    front = _front(graph, term, shape)
    return all(size == 1 for size in front) or front == term.shape[:-2]


def _front(graph: Graph, term: Term, shape: Shape) -> Shape:
    """The sizes of a mask in front of those that both views of the scores share."""
    meta = graph.meta(term.mask.name)
    assert meta is not None
    if term.shape == shape:
        return ()
    pairs = zip(term.shape[-3::-1], shape[-3::-1], strict=False)
    shared = 2 + len(list(takewhile(lambda pair: pair[0] == pair[1] is not None, pairs)))
    return meta.shape[:-shared]


@dataclass
class _Nodes:
    """Nodes that are made, beside what was there before; scalings of that are left out."""

    graph: Graph
    scalings: Mapping[str, Ref]
    made: list[Node] = field(default_factory=list)

    def read(self, ref: Ref) -> Ref:
        """A value of before, without its scalings."""
        while ref.name in self.scalings:
            ref = self.scalings[ref.name]
        return ref

    def add(
        self,
        name: str,
        op: str,
        args: tuple[Any, ...],
        shape: Shape,
        dtype: str = "float32",
        **kwargs: Any,
    ) -> Ref:
        meta = TensorMeta(shape, dtype)
        self.made.append(Node(name, f"aten.{op}", args, kwargs, meta))
        return Ref(name)

    def shape(self, ref: Ref) -> Shape:
        made = next((node for node in self.made if node.name == ref.name), None)
        meta = self.graph.meta(ref.name) if made is None else made.meta
        assert meta is not None
        return meta.shape


def _attend(nodes: _Nodes, one: _Written) -> None:
    """Make the nodes in place of the second product, under its name."""
    scores, shape, name = one.scores, one.shape, one.last.name
    assert one.last.meta is not None
    result = one.last.meta.shape
    key = _turned(nodes, nodes.read(scores.key), f"{name}.key")
    told = scores.told(shape) or ()

    def seen(what: str, ref: Ref, before: Shape, rows: int) -> Ref:
        width = nodes.shape(ref)[-1]
        if before[:-2] == shape[:-2]:
            return ref
        sizes = [*told[:-2], told[rows], width]
        made = (*shape[:-2], shape[rows], width)
        return nodes.add(f"{name}.{what}_seen", "reshape.default", (ref, sizes), made)

    query = seen("query", nodes.read(scores.query), scores.shape, -2)
    key = seen("key", key, scores.shape, -1)
    value = seen("value", nodes.read(one.value), one.probabilities, -1)
    args = (query, key, value, _mask(nodes, one), 0.0, False)
    made = (*shape[:-1], result[-1])
    whole = f"{name}.attention" if made[:-2] != result[:-2] else name
    nodes.add(whole, "scaled_dot_product_attention.default", args, made, scale=scores.scale)
    if whole != name:
        sizes = [*(scores.told(result) or ())[:-1], result[-1]]
        nodes.add(name, "reshape.default", (Ref(whole), sizes), result)
    nodes.made = [
        replace(node, module=one.last.module, module_type=one.last.module_type)
        for node in nodes.made
    ]


def _turned(nodes: _Nodes, key: Ref, name: str) -> Ref:
    """Keys ``[..., sources, channels]``, of which the product reads the transposed ones."""
    node, shape = nodes.graph.producer(key), nodes.shape(key)
    made = (*shape[:-2], shape[-1], shape[-2])
    rank = len(shape)
    swaps = node is not None and node.short_op in ("transpose", "swapaxes")
    if node is not None and swaps and {a % rank for a in node.args[1:]} == {rank - 1, rank - 2}:
        return nodes.read(node.args[0])
    if node is not None and node.op == "aten.permute.default":
        source, axes = nodes.read(node.args[0]), [axis % rank for axis in node.args[1]]
        *order, channels, sources = axes
        return nodes.add(name, "permute.default", (source, [*order, sources, channels]), made)
    return nodes.add(name, "transpose.int", (key, -2, -1), made)


def _mask(nodes: _Nodes, one: _Written) -> Ref | None:
    """All that is added to the scores: what is filled in replaces what was added before."""
    name, terms, mask = one.last.name, one.scores.terms, None
    for index, term in enumerate(terms):
        fills = mask is not None and term.filled is not None
        part = term.mask if fills else _added(nodes, term, len(terms) == 1, f"{name}.mask_{index}")
        front = _front(nodes.graph, term, one.shape)
        if front:
            dtype = "bool" if fills else "float32"
            part = _seen(nodes, part, front, one, f"{name}.mask_{index}_seen", dtype)
        if mask is None:
            mask = part
            continue
        shape, both = _broadcast(nodes.shape(mask), nodes.shape(part)), f"{name}.masks_{index}"
        if fills:
            there, elsewhere = term.values
            op, args = (
                ("where.ScalarSelf", (part, there, mask))
                if there
                else ("where.ScalarOther", (part, mask, elsewhere))
            )
            mask = nodes.add(both, op, args, shape)
        else:
            mask = nodes.add(both, "add.Tensor", (mask, part), shape)
    hides = mask is not None and hides_all(nodes.graph, terms)
    return _with_nan(nodes, mask) if mask is not None and hides else mask


def _with_nan(nodes: _Nodes, mask: Ref) -> Ref:
    """A mask that is NaN in rows of minus infinity: zero times that is NaN."""
    shape = nodes.shape(mask)
    row = (*shape[:-1], 1)
    most = nodes.add(f"{mask.name}.most", "amax.default", (mask, [-1], True), row)
    nothing = nodes.add(f"{mask.name}.nothing", "mul.Tensor", (most, 0.0), row)
    return nodes.add(f"{mask.name}.with_nan", "add.Tensor", (mask, nothing), shape)


def _seen(nodes: _Nodes, mask: Ref, front: Shape, one: _Written, name: str, dtype: str) -> Ref:
    """A mask as it is added to the scores of the operator."""
    sizes = nodes.shape(mask)
    if all(size == 1 for size in front):
        axes = list(range(len(front)))
        return nodes.add(name, "squeeze.dims", (mask, axes), sizes[len(front) :], dtype)
    told = one.scores.told(one.shape) or ()
    rows = [size if size == 1 else known for size, known in zip(sizes[-2:], told[-2:], strict=True)]
    made = (*one.shape[:-2], *sizes[-2:])
    return nodes.add(name, "reshape.default", (mask, [*told[:-2], *rows]), made, dtype)


def _added(nodes: _Nodes, term: Term, alone: bool, name: str) -> Ref:
    """What a mask adds, in floats; what hides is lower still where nothing else is added."""
    shape = nodes.shape(term.mask)
    if term.filled is not None:
        values = [min(value, _LOWEST) if alone and value else value for value in term.values]
        name = f"{term.mask.name}.adding_{values[0]:g}_{values[1]:g}"
        return nodes.add(name, "where.Scalar", (term.mask, *values), shape)
    if term.factor == 1:
        return term.mask
    return nodes.add(name, "mul.Tensor", (term.mask, term.factor), shape)


def _broadcast(one: Shape, other: Shape) -> Shape:
    """The shape of a sum: an open size is not 1, and one beside a known one is that."""
    rank = max(len(one), len(other))
    pairs = zip(*((1,) * (rank - len(shape)) + shape for shape in (one, other)), strict=True)
    return tuple(b if a == 1 or (a is None and b not in (1, None)) else a for a, b in pairs)
