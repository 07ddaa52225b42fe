"""Boolean attention masks become masks to add: made once, where each attention would make its own.

PyTorch's kernels add their mask to the scores, and turn a boolean one into zeros and minus
infinities at every call. Constant masks stay as they are, a quarter of the size.
"""

from __future__ import annotations

import math
from dataclasses import replace

from octavo.graph.graph import Graph, Node, Ref, TensorMeta

_MASK = 3  # position of the mask among the arguments


def masks_to_add(graph: Graph) -> Graph:
    """The graph with ``where(mask, 0, -inf)`` behind each boolean mask that is computed."""
    metas = {name: meta for name, meta in graph.metas.items() if meta is not None}
    made: set[str] = set()
    nodes = []
    for node in graph.nodes:
        mask = _boolean_mask(node, metas)
        if mask is not None:
            name = f"{mask}.to_add"
            if name not in made:
                made.add(name)
                meta = replace(metas[mask], dtype="float32")
                nodes.append(Node(name, "aten.where.Scalar", (Ref(mask), 0.0, -math.inf), {}, meta))
            args = (*node.args[:_MASK], Ref(name), *node.args[_MASK + 1 :])
            node = replace(node, args=args)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def _boolean_mask(node: Node, metas: dict[str, TensorMeta]) -> str | None:
    """Name of a computed boolean mask of an attention in float32."""
    if node.op != "aten.scaled_dot_product_attention.default" or len(node.args) <= _MASK:
        return None
    query, mask = node.args[0], node.args[_MASK]
    if not (isinstance(query, Ref) and isinstance(mask, Ref)):
        return None
    dtypes = [metas[ref.name].dtype if ref.name in metas else None for ref in (query, mask)]
    return mask.name if dtypes == ["float32", "bool"] else None
