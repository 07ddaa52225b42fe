"""What depends on constants alone is computed once: a weight made of other parameters (weight
normalization, standardized weights), a mask or a table of positions.

So such a weight is a constant like any other, and can be quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, refs_in
from octavo.graph.operators import dtype_of
from octavo.graph.passes.training import DROPOUTS
from octavo.graph.program import computed
from octavo.graph.rewrite import Constant, Part, rewrite

# A view that repeats its source takes no memory in the model, and would in a file.
_SMALL = 2**16
# These read a type, and no value, of their first argument.
_OF_TYPE = frozenset({"new_zeros", "new_ones", "new_full"})


def fold_constants(graph: Graph) -> Graph:
    """The graph with a constant in place of each tensor that depends on no input.

    A constant has the name of the node that made it. A node stays where its result is much larger
    than what it is made of.
    """
    known: dict[str, Any] = dict(graph.constants)

    def folded(node: Node) -> Part | Iterable[Part]:
        node = _of_no_input(node, graph)
        if not (_is_fixed(node, known) and _gives_tensors(node, graph)):
            return node
        result = computed(node, known)
        if _size(result) > max([_SMALL, *(_size(known[name]) for name in node.refs())]):
            return node
        known[node.name] = result
        return Constant(node.name, result) if isinstance(result, Tensor) else ()

    whole = rewrite(graph, folded)
    made = {n: _own(t) for n, t in whole.constants.items() if n not in graph.constants}
    return replace(whole, constants={**whole.constants, **made})


def _of_no_input(node: Node, graph: Graph) -> Node:
    """What reads of an input its type alone, without the input."""
    if node.short_op not in _OF_TYPE or node.meta is None or any(refs_in(node.args[1:])):
        return node
    op = f"aten.{node.short_op.removeprefix('new_')}.default"
    dtype = dtype_of(node.meta.dtype)
    return replace(node, op=op, args=node.args[1:], kwargs={"dtype": dtype, "device": graph.device})


def _is_fixed(node: Node, known: Mapping[str, Any]) -> bool:
    return node.short_op not in DROPOUTS and all(name in known for name in node.refs())


def _gives_tensors(node: Node, graph: Graph) -> bool:
    """Whether a node's result is a tensor, or several of which each reader takes one."""
    takes_one = [user.op == "python.getitem" for user in graph.users[node.name]]
    return node.meta is not None or (bool(takes_one) and all(takes_one))


def _size(value: Any) -> int:
    """The number of a tensor's elements, or of several tensors' together."""
    return value.numel() if isinstance(value, Tensor) else sum(map(_size, value))


def _own(tensor: Tensor) -> Tensor:
    """A tensor that shares no memory with the user's parameters."""
    return tensor.clone(memory_format=torch.contiguous_format)
