"""Between the graph of a model in training mode and the one in evaluation mode.

Capture exports in evaluation mode. What training does differently there are flags: dropout drops,
and a batch norm normalizes with the statistics of the batch.

Tested in tests/qat/test_prepare.py.
"""

from __future__ import annotations

from octavo.graph.graph import Graph, Node
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.rewrite import rewrite

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
    return rewrite(graph, lambda node: _flag(node, training))


def _flag(node: Node, training: bool) -> Node:
    flag = training_flag(node)
    return node if flag is None else with_arguments(node, **{flag: training})


def training_flag(node: Node) -> str | None:
    """The argument that says whether a node runs as in training.

    A batch norm without running statistics normalizes with the batch's in either mode.
    """
    if node.op == "aten.batch_norm.default" and arguments(node)["running_mean"] is None:
        return None
    return _FLAGS.get(node.short_op)


_FLAGS = {"batch_norm": "training", **dict.fromkeys(DROPOUTS | RECURRENT, "train")}
