"""Products by other names become those that there are kernels for.

``einsum`` and ``tensordot`` of two tensors become ``matmul``, or a linear layer where one of them
is a weight; ``bilinear`` becomes a linear layer of all products of its two inputs; ``baddbmm``, and
``addmm`` where it is no linear layer, become a product and a sum. So they are planned, quantized,
exported and found in attention as these are.

Products that are none of matrices (of vectors, of each with each, of three tensors) stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.passes.linear import is_linear
from octavo.graph.rewrite import Part, rewrite

# What the axes of an ellipsis are called; no equation has such letters.
_ELLIPSIS = "0123456789"


def products_by_one_name(graph: Graph) -> Graph:
    """The graph with such products as ``matmul``, ``bmm`` and ``linear``; what is computed of a
    weight alone, to be the matrix of a layer, is not yet a constant.
    """

    def renamed(node: Node) -> Iterator[Part]:
        steps = _Steps(node, graph.users.keys())
        _SPELLINGS.get(node.op, _nothing)(graph, node, steps)
        yield from steps.renamed() if steps.parts else [node]

    return rewrite(graph, renamed)


@dataclass(frozen=True)
class _Factor:
    """A tensor whose axes have letters."""

    ref: Ref
    letters: str
    shape: tuple[int | None, ...]


@dataclass
class _Steps:
    """What is computed in place of a node; the last one has its name.

    Attributes:
        node: that is replaced.
        taken: the names of what the graph has.
        sizes: of the letters, ``None`` where they are open.
        found: letter -> a tensor and the axis of it that has the letter's size.
        parts: what is computed.
    """

    node: Node
    taken: Collection[str]
    sizes: dict[str, int | None] = field(default_factory=dict)
    found: dict[str, tuple[Ref, int]] = field(default_factory=dict)
    parts: list[Node] = field(default_factory=list)

    def add(self, what: str, op: str, args: tuple[Any, ...], shape: Sequence[int | None]) -> Ref:
        """A tensor that is computed, named for what it is to the node."""
        assert self.node.meta is not None
        made = self._named(what, f"aten.{op}", args)
        self.parts.append(replace(made, meta=replace(self.node.meta, shape=tuple(shape))))
        return Ref(made.name)

    def _named(self, what: str, op: str, args: tuple[Any, ...]) -> Node:
        name = f"{self.node.name}.{what}"
        while name in self.taken:  # a module's parameter, say
            name += "_"
        return replace(self.node, name=name, op=op, args=args, kwargs={}, meta=None)

    def shape(self, groups: Sequence[str]) -> list[int | None]:
        """Of a tensor each of whose axes runs over some letters."""
        sizes = [[self.sizes[letter] for letter in group] for group in groups]
        return [None if None in group else math.prod(group) for group in sizes]  # type: ignore[arg-type]

    def arranged(self, factor: _Factor, groups: Sequence[str], what: str) -> Ref:
        """A tensor whose axes run over these groups of letters."""
        axes = list("".join(groups))
        order = [factor.letters.index(letter) for letter in axes]
        ref = self._in_order(factor.ref, order, axes, what)
        for index, group in enumerate(groups):
            if len(group) > 1:
                axes[index : index + len(group)] = [group]
                args = (ref, index, index + len(group) - 1)
                ref = self.add(f"{what}_{group}", "flatten.using_ints", args, self.shape(axes))
        return ref

    def taken_apart(self, ref: Ref, groups: Sequence[str], letters: str) -> None:
        """The result: one letter an axis, in this order."""
        axes = list(groups)
        for index, group in reversed(list(enumerate(groups))):
            if len(group) > 1:
                axes[index : index + 1] = group
                args = (ref, index, self._told(group))
                ref = self.add(f"apart_{group}", "unflatten.int", args, self.shape(axes))
        self._in_order(ref, [axes.index(letter) for letter in letters], letters, "in_order")

    def _in_order(self, ref: Ref, order: list[int], axes: Sequence[str], what: str) -> Ref:
        *front, before, last = range(max(len(order), 2))
        if order == [*front, last, before]:
            return self.add(what, "transpose.int", (ref, before, last), self.shape(axes))
        if order == sorted(order):
            return ref
        return self.add(what, "permute.default", (ref, order), self.shape(axes))

    def _told(self, group: str) -> list[Any]:
        """The sizes of letters as numbers, one of which may be -1, or as read of tensors."""
        sizes = [self.sizes[letter] for letter in group]
        if sizes.count(None) < 2:
            return [-1 if size is None else size for size in sizes]
        told: list[Any] = []
        for letter, size in zip(group, sizes, strict=True):
            if size is None:
                read = self._named(f"size_{letter}", "aten.sym_size.int", self.found[letter])
                self.parts.append(read)
            told.append(Ref(read.name) if size is None else size)
        return told

    def renamed(self) -> Iterator[Part]:
        """The parts, the last one under the name of the node, and with its meta."""
        *before, last = self.parts
        yield from before
        yield replace(last, name=self.node.name, meta=self.node.meta)


def _nothing(graph: Graph, node: Node, steps: _Steps) -> None:
    """It is no product, or one that stays."""


def _factors(graph: Graph, refs: Sequence[Any], terms: Sequence[str]) -> list[_Factor] | None:
    """Tensors and the letters of their axes; ``None`` where one is not a matrix, or of floats."""
    factors = []
    for ref, letters in zip(refs, terms, strict=True):
        meta = graph.meta(ref.name) if isinstance(ref, Ref) else None
        if meta is None or meta.dtype != "float32" or len(meta.shape) != len(letters):
            return None
        if max(Counter(letters).values(), default=0) != 1:  # a diagonal
            return None
        factors.append(_Factor(ref, letters, meta.shape))
    return factors


def _einsum(graph: Graph, node: Node, steps: _Steps) -> None:
    equation, refs = node.args[:2]
    metas = [graph.meta(ref.name) for ref in refs]
    if any(meta is None for meta in metas):
        return
    *terms, result = _terms(equation, [len(meta.shape) for meta in metas if meta is not None])
    factors = _factors(graph, refs, terms)
    if factors is not None and len(factors) == 2:
        _contract(graph, steps, factors[0], factors[1], result)
    elif factors is not None and len(factors) == 1 and sorted(terms[0]) == sorted(result):
        _size(steps, factors)
        steps.taken_apart(refs[0], terms[0], result)


def _terms(equation: str, ranks: Sequence[int]) -> list[str]:
    """The letters of each tensor of an equation, and of the result; with letters for an ellipsis.

    Example:
        >>> _terms("b...i, ij", [3, 2])
        ['b0i', 'ij', '0bj']
    """
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms, longest = inputs.split(","), 0
    for index, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        count = rank - len(term.replace(".", "")) if "..." in term else 0
        # They are matched from the last one on.
        terms[index] = term.replace("...", _ELLIPSIS[:count][::-1])
        longest = max(longest, count)
    dots = _ELLIPSIS[:longest][::-1]
    if arrow:
        return [*terms, result.replace("...", dots)]
    counts = Counter(inputs)
    once = sorted(letter for letter in counts if letter.isalpha() and counts[letter] == 1)
    return [*terms, dots + "".join(once)]


def _size(steps: _Steps, factors: Sequence[_Factor]) -> bool:
    """Note how long the axes of each letter are; whether they are alike in all factors."""
    for factor in factors:
        for axis, (letter, size) in enumerate(zip(factor.letters, factor.shape, strict=True)):
            if steps.sizes.setdefault(letter, size) != size:
                return False
            steps.found.setdefault(letter, (factor.ref, axis))
    return True


def _contract(graph: Graph, steps: _Steps, one: _Factor, other: _Factor, result: str) -> None:
    """The sum of products of two tensors over all letters that the result has not."""
    if one.ref.name in graph.constants:
        one, other = other, one
    left = "".join(x for x in result if x not in other.letters)
    right = "".join(x for x in result if x not in one.letters)
    both = "".join(x for x in result if x in one.letters and x in other.letters)
    summed = "".join(x for x in one.letters if x in other.letters and x not in result)
    is_product = sorted(both + left + summed) == sorted(one.letters)
    is_product &= sorted(both + right + summed) == sorted(other.letters)
    if not (is_product and left and right and summed and _size(steps, [one, other])):
        return
    rows = [left] if both else list(left)
    x = steps.arranged(one, [*both, *rows, summed], "left")
    made = [*both, *rows, right]
    if other.ref.name in graph.constants and [right, summed] == list(other.letters):
        product = steps.add("product", "linear.default", (x, other.ref), steps.shape(made))
    else:
        y = steps.arranged(other, [*both, summed, right], "right")
        product = steps.add("product", "matmul.default", (x, y), steps.shape(made))
    steps.taken_apart(product, made, result)


def _tensordot(graph: Graph, node: Node, steps: _Steps) -> None:
    one, other, axes, other_axes = arguments(node).values()
    metas = [graph.meta(ref.name) for ref in (one, other)]
    if metas[0] is None or metas[1] is None:
        return
    letters = [chr(ord("a") + axis) for axis in range(len(metas[0].shape))]
    others = [chr(ord("A") + axis) for axis in range(len(metas[1].shape))]
    for axis, other_axis in zip(axes, other_axes, strict=True):
        others[other_axis] = letters[axis]
    result = [x for x in letters if x not in others] + [x for x in others if x not in letters]
    factors = _factors(graph, (one, other), ("".join(letters), "".join(others)))
    if factors is not None:
        _contract(graph, steps, factors[0], factors[1], "".join(result))


def _bilinear(graph: Graph, node: Node, steps: _Steps) -> None:
    """``x1 @ weight @ x2`` is ``weight @ (x1 x2)`` of all products of their values."""
    one, other, weight, bias = arguments(node).values()
    metas = [graph.meta(ref.name) for ref in (one, other, weight)]
    if any(meta is None or meta.dtype != "float32" for meta in metas):
        return
    shapes = [meta.shape for meta in metas if meta is not None]
    *rows, width = shapes[0]
    height = shapes[1][-1]
    x = steps.add("left", "unsqueeze.default", (one, -1), [*rows, width, 1])
    y = steps.add("right", "unsqueeze.default", (other, -2), [*rows, 1, height])
    pairs = steps.add("pairs", "mul.Tensor", (x, y), [*rows, width, height])
    size = shapes[2][1] * shapes[2][2]  # type: ignore[operator]
    flat = steps.add("input", "flatten.using_ints", (pairs, -2, -1), [*rows, size])
    matrix = steps.add("matrix", "flatten.using_ints", (weight, 1, 2), [shapes[2][0], size])
    args = (flat, matrix) if bias is None else (flat, matrix, bias)
    steps.add("product", "linear.default", args, [*rows, shapes[2][0]])


def _product_and_sum(graph: Graph, node: Node, steps: _Steps) -> None:
    """``beta * self + alpha * (one @ other)``."""
    if node.meta is None or is_linear(node, graph.constants):
        return
    added, one, other, beta, alpha = arguments(node).values()
    shape = node.meta.shape
    op = "bmm.default" if node.short_op == "baddbmm" else "matmul.default"
    product = steps.add("product", op, (one, other), shape)
    if alpha != 1:
        product = steps.add("scaled", "mul.Tensor", (product, alpha), shape)
    if beta == 0:
        return
    if beta != 1:
        meta = graph.meta(added.name)
        sizes = shape if meta is None else meta.shape
        added = steps.add("added", "mul.Tensor", (added, beta), sizes)
    steps.add("sum", "add.Tensor", (product, added), shape)


def _matmul(graph: Graph, node: Node, steps: _Steps) -> None:
    assert node.meta is not None
    steps.add("product", "matmul.default", node.args, node.meta.shape)


_SPELLINGS: Mapping[str, Callable[[Graph, Node, _Steps], None]] = {
    "aten.einsum.default": _einsum,
    "aten.tensordot.default": _tensordot,
    "aten.bilinear.default": _bilinear,
    "aten.addmm.default": _product_and_sum,
    "aten.baddbmm.default": _product_and_sum,
    "aten.mm.default": _matmul,
}
