"""Passes: functions from a graph to a graph, one theme a file.

Tested in tests/graph/capture/test_capture.py.
"""

from octavo.graph.graph import Graph
from octavo.graph.passes.attention_masks import masks_to_add
from octavo.graph.passes.batches_of_one import batches_of_one
from octavo.graph.passes.copies import copies_as_values
from octavo.graph.passes.fold_batch_norm import fold_batch_norm, foldable_norms
from octavo.graph.passes.fold_constants import fold_constants
from octavo.graph.passes.linear import products_as_linear
from octavo.graph.passes.products import products_by_one_name
from octavo.graph.passes.simplify import normalise_spelling, remove_identities
from octavo.graph.passes.training import in_evaluation, in_training
from octavo.graph.passes.written_attention import written_attention

__all__ = [
    "batches_of_one",
    "canonical",
    "copies_as_values",
    "fold_batch_norm",
    "fold_constants",
    "foldable_norms",
    "in_evaluation",
    "in_training",
    "masks_to_add",
    "normalise_spelling",
    "products_as_linear",
    "products_by_one_name",
    "remove_identities",
    "simplified",
    "written_attention",
]


def canonical(graph: Graph) -> Graph:
    """The form that planning starts from: no identities, one spelling, constants and batch norms
    folded.
    """
    return fold_batch_norm(fold_constants(written_attention(simplified(graph))))


def simplified(graph: Graph) -> Graph:
    """The canonical form but for batch norms, which stand where they stood."""
    for apply in (
        copies_as_values,
        remove_identities,
        normalise_spelling,
        fold_constants,
        products_by_one_name,
        fold_constants,
        batches_of_one,
        masks_to_add,
        products_as_linear,
    ):
        graph = apply(graph)
    return graph
