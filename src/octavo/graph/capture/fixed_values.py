"""Values that depend on no input, of operators that a graph cannot have: computed while capturing.

A rotation made of a parameter by ``matrix_exp``, or a window that ``forward`` makes anew, is a
constant; which operator made it does not matter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, map_arg


def fixed_values(
    graph: Graph, constants: Mapping[str, Tensor], is_allowed: Callable[[Node], bool]
) -> dict[str, Any]:
    """By node, the values that have to be computed now: tensors, or tuples that nothing else reads.

    Args:
        graph: of an exported program.
        constants: parameters, buffers and other tensors, by the placeholder's name.
        is_allowed: whether a graph may have a node's operator.
    """
    fixed = {node for node in graph.nodes if node.name in constants}
    known: dict[Node, Any] = {node: constants[node.name] for node in fixed}
    values: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not fixed.issuperset(node.all_input_nodes):
            continue
        if not _is_function_of_its_arguments(node):
            continue
        fixed.add(node)
        reads_a_tuple = any(
            arg.name in values and not isinstance(values[arg.name], Tensor)
            for arg in node.all_input_nodes
        )
        if reads_a_tuple or not is_allowed(node):
            values[node.name] = _value(node, known)
    return values


def _is_function_of_its_arguments(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


@torch.no_grad()
def _value(node: Node, known: dict[Node, Any]) -> Any:
    """What a node makes, and on the way what it is made of."""
    todo = [node]
    while todo:
        last = todo[-1]
        missing = [arg for arg in last.all_input_nodes if arg not in known]
        if missing:
            todo += missing
            continue
        args = map_arg(last.args, known.__getitem__)
        kwargs = map_arg(last.kwargs, known.__getitem__)
        known[last] = last.target(*args, **kwargs)  # type: ignore[operator]
        todo.pop()
    return known[node]
