"""How many multiply-adds a graph does, node by node: what its time goes to, mostly."""

from __future__ import annotations

from octavo.graph.graph import Graph
from octavo.graph.soundness.calls import calls, given
from octavo.graph.soundness.products import MULTIPLY_ADDS


def multiply_adds(graph: Graph) -> dict[str, int]:
    """The multiply-adds of each node that does any, in one call with the example's sizes.

    Sizes that depend on values count as the largest that they can be. Nothing runs.

    Args:
        graph: any, quantized or not.

    Returns:
        Node name -> multiply-adds.

    Raises:
        ArtifactError: an operator does not take its arguments.

    Example:
        >>> from torch import nn, ones
        >>> from octavo import capture
        >>> multiply_adds(capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), ones(2, 3)))
        {'0': 24}
    """
    counts = {
        node.name: MULTIPLY_ADDS[node.short_op](arguments, result)
        for node, arguments, result, _ in calls(graph, given(graph))
        if node.short_op in MULTIPLY_ADDS and not node.op.startswith("python.")
    }
    return {name: count for name, count in counts.items() if count}
