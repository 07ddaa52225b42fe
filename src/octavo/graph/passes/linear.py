"""A matrix product with a constant is a linear layer: so it is planned, quantized and run as one.

``x @ w`` and ``addmm(b, x, w)`` (the "Conv1D" of GPT-2) become ``linear(x, w.T, b)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.rewrite import Constant, Part, rewrite

# Operator -> its arguments that are bias, input and weight; ``""`` where it has none.
_PRODUCTS: Mapping[str, tuple[str, str, str]] = {
    "aten.addmm.default": ("self", "mat1", "mat2"),
    "aten.matmul.default": ("", "self", "other"),
}


def products_as_linear(graph: Graph) -> Graph:
    """The graph with each product of an activation and a constant matrix as ``aten.linear``.

    The transposed matrix has the name of the constant where nothing else reads that.
    """

    def linear(node: Node) -> Iterator[Part]:
        if is_linear(node, graph.constants):
            bias, x, weight = _operands(node)
            shared = graph.only_user(weight.name) is None
            name = f"{weight.name}.transposed" if shared else weight.name
            yield Constant(name, graph.constants[weight.name].t().contiguous())
            args = (x, Ref(name), bias) if bias is not None else (x, Ref(name))
            node = replace(node, op="aten.linear.default", args=args, kwargs={})
        yield node

    return rewrite(graph, linear)


def _operands(node: Node) -> list[Any]:
    """Bias (``None`` where there is none), input and weight."""
    given = arguments(node)
    return [given.get(name) for name in _PRODUCTS[node.op]]


def is_linear(node: Node, constants: Mapping[str, Tensor]) -> bool:
    """Whether a node is a product of an activation and a constant matrix, plus at most a vector."""
    if node.op not in _PRODUCTS or any(value != 1 for value in node.kwargs.values()):
        return False
    bias, x, weight = _operands(node)
    if not all(isinstance(arg, Ref) for arg in (x, weight)) or x.name in constants:
        return False
    if weight.name not in constants or constants[weight.name].dim() != 2:
        return False
    return bias is None or (bias.name in constants and constants[bias.name].dim() == 1)
