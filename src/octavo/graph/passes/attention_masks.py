"""Boolean attention masks become masks to add: made once, where each attention would make its own.

PyTorch's kernels add their mask to the scores, and turn a boolean one into zeros and minus
infinities at every call. Constant masks stay as they are, a quarter of the size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.rewrite import rewrite


def masks_to_add(graph: Graph) -> Graph:
    """The graph with ``where(mask, 0, -inf)`` behind each boolean mask that is computed."""
    metas = {name: meta for name, meta in graph.metas.items() if meta is not None}
    made: set[str] = set()

    def with_mask_to_add(node: Node) -> Iterator[Node]:
        mask = _boolean_mask(node, metas)
        if mask is not None:
            name = f"{mask}.to_add"
            if name not in made:
                made.add(name)
                meta = replace(metas[mask], dtype="float32")
                yield Node(name, "aten.where.Scalar", (Ref(mask), 0.0, -math.inf), {}, meta)
            node = with_arguments(node, attn_mask=Ref(name))
        yield node

    return rewrite(graph, with_mask_to_add)


def _boolean_mask(node: Node, metas: dict[str, TensorMeta]) -> str | None:
    """Name of a computed boolean mask of an attention in float32."""
    if node.op != "aten.scaled_dot_product_attention.default":
        return None
    given = arguments(node)
    query, mask = given["query"], given["attn_mask"]
    if not (isinstance(query, Ref) and isinstance(mask, Ref)):
        return None
    dtypes = [metas[ref.name].dtype if ref.name in metas else None for ref in (query, mask)]
    return mask.name if dtypes == ["float32", "bool"] else None
