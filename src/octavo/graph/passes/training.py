"""Between the graph of a model in training mode and the one in evaluation mode.

Capture exports in evaluation mode. What training does differently there are flags: dropout drops,
and a batch norm normalizes with the statistics of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octavo.graph.graph import Graph, Node

DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def in_training(graph: Graph) -> Graph:
    """The graph with dropout and batch statistics on.

    So no pass takes a dropout for an identity, or folds a batch norm.
    """
    return _flagged(graph, True)


def in_evaluation(graph: Graph) -> Graph:
    """The graph with dropout and batch statistics off."""
    return _flagged(graph, False)


def _flagged(graph: Graph, training: bool) -> Graph:
    return replace(graph, nodes=tuple(_flag(node, training) for node in graph.nodes))


def _flag(node: Node, training: bool) -> Node:
    position = training_flag(node)
    if position is None:
        return node
    return replace(node, args=(*node.args[:position], training, *node.args[position + 1 :]))


def training_flag(node: Node) -> int | None:
    """The position of the argument that says whether a node runs as in training.

    A batch norm without running statistics normalizes with the batch's in either mode.
    """
    position = _FLAGS.get(node.op)
    if node.short_op == "batch_norm" and node.args[3] is None:
        return None
    return None if position is None else position(node)


def _last_but(count: int) -> Callable[[Node], int]:
    return lambda node: len(node.args) - count


# lstm.input(x, hx, weights, has_biases, layers, dropout, train, bidirectional, batch_first), and
# .data(x, sizes, hx, weights, has_biases, layers, dropout, train, bidirectional).
_FLAGS: dict[str, Callable[[Node], int]] = {
    "aten.batch_norm.default": lambda node: 5,
    **{f"aten.{name}.default": (lambda node: 2) for name in DROPOUTS},
    **{f"aten.{name}.input": _last_but(3) for name in RECURRENT},
    **{f"aten.{name}.data": _last_but(2) for name in RECURRENT},
}
