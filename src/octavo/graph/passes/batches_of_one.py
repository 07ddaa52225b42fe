"""Convolutions and pools of one sample without a batch get a batch of one.

torch takes ``[channels, *sizes]`` as well as ``[batch, channels, *sizes]``. No kernel of a runtime
does, and one form is what all that comes behind is written for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from octavo.graph.graph import Graph, Node, Ref, TensorMeta
from octavo.graph.rewrite import Part, rewrite

_OPERATORS = {
    f"aten.{name}{axes}d.{overload}": axes
    for axes in (1, 2, 3)
    for name, overload in (
        ("conv", "default"),
        ("conv", "padding"),
        ("conv_transpose", "default" if axes == 1 else "input"),
        ("max_pool", "default"),
        ("avg_pool", "default"),
        ("adaptive_avg_pool", "default"),
    )
}


def batches_of_one(graph: Graph) -> Graph:
    """The graph with ``unsqueeze`` in front of such operators, and ``squeeze`` behind them."""
    batches: dict[str, str] = {}  # a sample -> the batch that it was taken out of

    def with_a_batch(node: Node) -> Iterator[Part]:
        axes, meta = _OPERATORS.get(node.op), node.meta
        if axes is None or meta is None or len(meta.shape) != axes + 1:
            yield node
            return
        x, *rest = node.args
        batch, sample = f"{node.name}.batch", f"{node.name}.sample"
        if x.name in batches:
            batch = batches[x.name]
        else:
            known = graph.meta(x.name)
            yield Node(batch, "aten.unsqueeze.default", (x, 0), {}, known and _of_one(known))
        batches[sample] = node.name
        yield replace(node, args=(Ref(batch), *rest), meta=_of_one(meta))
        yield Node(sample, "aten.squeeze.dim", (Ref(node.name), 0), {}, meta)
        yield Ref(sample)

    return rewrite(graph, with_a_batch)


def _of_one(meta: TensorMeta) -> TensorMeta:
    return replace(meta, shape=(1, *meta.shape))
