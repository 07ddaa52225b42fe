"""Products that overflow on CPUs without VNNI, where pairs of them are summed in int16.

``x0 * w0 + x1 * w1`` fits for certain where the largest activation times the sum of the two largest
weights of one sign does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo import operators
from octavo.graph import Graph, Node, Ref
from octavo.runtimes import cpu

REASON = (
    "this CPU has no VNNI, its int8 kernel would saturate on these activations and weights: "
    'quantize with target="x86-avx2" and its default weights'
)
_QUANTIZE, _DEQUANTIZE = "octavo.quantize.default", "octavo.dequantize.default"
_CHANNELS = "octavo.dequantize_channels.default"


def overflows(weight: Tensor, highest: int) -> bool:
    """Whether a pair of products may not fit.

    Args:
        weight: int8 ``[outputs, ...]``.
        highest: the largest activation, as the kernel reads it from zero on.
    """
    rows = weight.flatten(1).to(torch.int32)
    count = min(2, rows.shape[1])
    sums = [side.clamp(min=0).topk(count, dim=1).values.sum(1).max() for side in (rows, -rows)]
    return highest * max(int(s) for s in sums) > torch.iinfo(torch.int16).max


def with_float_weights(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph with float weights for layers that would overflow here, and the reason for each.

    For runtimes that choose their kernels themselves: with float weights they choose float ones.
    """
    if not cpu.saturates():
        return graph, {}
    nodes = {node.name: node for node in graph.nodes}
    constants, reasons = dict(graph.constants), {}
    replaced: set[str] = set()
    for node in graph.nodes:
        weight = _overflowing_weight(node, nodes, graph)
        if weight is not None:
            reasons[node.name] = REASON
            read = (graph.constants[a.name] if isinstance(a, Ref) else a for a in weight.args)
            constants[weight.name] = operators.resolve(weight.op)(*read)
            replaced.add(weight.name)
    kept = tuple(node for node in graph.nodes if node.name not in replaced)
    return replace(graph, nodes=kept, constants=constants).pruned(), reasons


def _overflowing_weight(node: Node, nodes: dict[str, Node], graph: Graph) -> Node | None:
    """The node that dequantizes the weight of a layer that would overflow."""
    read = [nodes[name] for name in node.refs() if name in nodes]
    weight = next((other for other in read if _is_weight(other, graph)), None)
    source = next((o for o in read if o.op == _DEQUANTIZE and o is not weight), None)
    if source is None or weight is None or node.op.startswith("octavo."):
        return None
    rounding = nodes.get(source.args[0].name)
    integers = graph.constants[weight.args[0].name]
    if rounding is None or rounding.op != _QUANTIZE or integers.dtype != torch.int8:
        return None
    low, high = rounding.args[3:5]
    if node.short_op in ("conv1d", "conv2d", "conv3d") and integers.shape[1] == 1:
        return None  # a depthwise kernel sums no pairs
    axis = weight.args[3] if weight.op == _CHANNELS else 0
    return weight if overflows(integers.transpose(0, axis), high - min(low, 0)) else None


def _is_weight(node: Node, graph: Graph) -> bool:
    constant = all(name in graph.constants for name in node.refs())
    return node.op in (_DEQUANTIZE, _CHANNELS) and constant
