"""What a foreign runtime made of the model: which layers its compiled graph runs on integers.

Tested in tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from octavo.graph.graph import Graph, Node
from octavo.graph.qdq import DEQUANTIZED, is_own
from octavo.quantization.targets import PRODUCT, ROLES, SHARED, WEIGHTED


def account(
    graph: Graph, integer: Mapping[str, str], otherwise: Mapping[str, str], runtime: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Kernels and fallbacks, as `octavo.runtimes.lowered.Lowered` has them.

    Args:
        graph: what was quantized.
        integer: node -> the runtime's integer kernel, as it reports them.
        otherwise: node -> the runtime's kernel on floats.
        runtime: its name.
    """
    kernels: dict[str, str] = {}
    fallbacks: dict[str, str] = {}
    for node in _reading_integers(graph):
        if node.name in integer:
            kernels[node.name] = integer[node.name]
        elif node.name in otherwise:
            fallbacks[node.name] = f"{runtime} runs it in float ({otherwise[node.name]})"
        elif ROLES.get(node.short_op) in (WEIGHTED, PRODUCT):
            fallbacks[node.name] = f"{runtime}'s compiled model does not name it"
        # Others that are not named are gone: a relu in front of integers that begin at zero, say.
    return kernels, fallbacks


def _reading_integers(graph: Graph) -> Iterator[Node]:
    """Nodes that compute with integers in QDQ form; not those that only move them."""
    dequantized = {node.name for node in graph.nodes if node.op in DEQUANTIZED}
    for node in graph.nodes:
        moves = ROLES.get(node.short_op) == SHARED or node.op.startswith("python.")
        if not moves and not is_own(node) and dequantized & set(node.refs()):
            yield node
