"""A graph for inputs of known sizes: no size is open in it, and none is computed.

For formats that have to know every shape.

Tested in tests/graph/test_fixed_sizes.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref, TensorMeta, map_refs
from octavo.graph.program import computed
from octavo.graph.qdq import is_own
from octavo.graph.rewrite import Constant, Part, rewrite

_NUMBERS = (bool, int, float)
# They look at the sizes of a tensor alone.
_FILLED = frozenset("zeros_like ones_like full_like new_zeros new_ones new_full".split())


def with_fixed_sizes(graph: Graph, shapes: Sequence[Sequence[int]]) -> Graph:
    """The graph as it is for inputs of these shapes.

    What depends on sizes alone is a number, or a constant, and each node knows its shape. The
    graph runs once to tell, on zeros.

    Args:
        graph: any.
        shapes: of each input.

    Raises:
        RuntimeError, IndexError, ValueError: it cannot run on such inputs.
    """
    inputs = tuple(
        replace(entry, meta=replace(entry.meta, shape=tuple(shape)), example=tuple(shape), axes=())
        for entry, shape in zip(graph.inputs, shapes, strict=True)
    )
    known = _Known(graph, {e.name: _zeros(e.meta) for e in inputs})
    return rewrite(replace(graph, inputs=inputs, guards=()), known.fixed)


def _zeros(meta: TensorMeta) -> Tensor:
    sizes = [size or 0 for size in meta.shape]
    return torch.zeros(sizes, dtype=getattr(torch, meta.dtype))


class _Known:
    """What nodes make of zeros, for as long as it is needed."""

    def __init__(self, graph: Graph, inputs: Mapping[str, Tensor]) -> None:
        self.values: dict[str, Any] = {**graph.constants, **inputs}
        self.last = {name: node.name for node in graph.nodes for name in node.refs()}
        self.numbers: dict[str, Any] = {}
        self.constant = set(graph.constants)

    def fixed(self, node: Node) -> list[Part]:
        """What stands for a node: nothing for a size, a constant for what depends on no input,
        else the node with its shape, and with numbers in the place of sizes.
        """
        result, read = computed(node, self.values), set(node.refs())
        self.values[node.name] = result
        for name in read - self.numbers.keys() - self.constant:
            if self.last[name] == node.name:
                del self.values[name]
        if isinstance(result, _NUMBERS):
            self.numbers[node.name] = result
            return []
        depends = set() if node.short_op in _FILLED else read
        if depends <= self.constant | self.numbers.keys() and not is_own(node):
            self.constant.add(node.name)
            return [Constant(node.name, result.clone())] if isinstance(result, Tensor) else []
        args, kwargs = map_refs((node.args, dict(node.kwargs)), self._number)
        meta = TensorMeta.of(result) if isinstance(result, Tensor) else None
        return [replace(node, args=args, kwargs=kwargs, meta=meta)]

    def _number(self, ref: Ref) -> Any:
        return self.numbers.get(ref.name, ref)
