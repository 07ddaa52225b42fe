"""Is a graph that comes from a file sound? Its names, its operators, and the tensors they make.

Every operator is checked on shapes and dtypes alone, in the graph's order: its arguments are of
kinds and values that it takes from a file, its result is what the graph declares, and all results
together stay within what such a file may ask for. So kernels can be chosen by the declarations, and
nothing runs before all of it is known.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from octavo.errors import ArtifactError
from octavo.graph.graph import Graph, refs_in
from octavo.graph.soundness import budget
from octavo.graph.soundness.calls import calls, given

# More than any model has; lowering and calling take time for each.
_MOST_NODES, _MOST_OUTPUTS = 100_000, 10_000


def check(graph: Graph) -> None:
    """Check names, operators, arguments, shapes, dtypes, and the memory and time that a run takes.

    Raises:
        ArtifactError: a name is missing or used twice, an operator is not allowed or does not take
            its arguments, a result is not what the graph declares, or it asks for too much.
    """
    _check_names(graph)
    values = given(graph)
    limits = _budget(graph, values)
    for node, _, result, cost in calls(graph, values):
        try:
            limits.spend(result, cost)
        except ValueError as error:
            raise ArtifactError(f"its node {node.name!r}: {node.op} {error}") from None
    try:
        limits.check_together(graph, values)
    except ValueError as error:
        raise ArtifactError(f"its graph {error}") from None


def _budget(graph: Graph, tensors: Mapping[str, Tensor]) -> budget.Budget:
    try:
        return budget.Budget.of(graph, tensors)
    except ValueError as error:
        raise ArtifactError(f"its graph {error}") from None


def _check_names(graph: Graph) -> None:
    """Names are unique and defined before use."""
    if len(graph.nodes) > _MOST_NODES or len(graph.output_names()) > _MOST_OUTPUTS:
        raise ArtifactError("its graph has more nodes or outputs than a model may")
    known = set(graph.input_names()) | set(graph.constants)
    if len(known) != len(graph.inputs) + len(graph.constants):
        raise ArtifactError("its graph gives one name to two tensors")
    for node in graph.nodes:
        unknown = [name for name in node.refs() if name not in known]
        if unknown or node.name in known:
            raise ArtifactError(f"its node {node.name!r} is defined twice or reads {unknown}")
        known.add(node.name)
    argument_names = sorted(refs_in(dict(graph.arguments)))
    if argument_names != sorted(entry.name for entry in graph.inputs):
        raise ArtifactError("its arguments do not give each input once")
    missing = [name for name in graph.output_names() if name not in known]
    if missing:
        raise ArtifactError(f"its outputs {missing} are not made by the graph")
