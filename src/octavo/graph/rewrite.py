"""Rewriting a graph: a rule says what stands in the place of each node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that the graph is to hold under this name."""

    name: str
    tensor: Tensor


Part = Node | Constant | Ref
Rule = Callable[[Node], Part | Iterable[Part]]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """The graph with what a rule makes of each node in its place.

    Args:
        graph: it is left as it is.
        rule: is asked for every node in order, and gives nodes, which may be none or the same;
            constants, new ones or others for those that the graph has; a `Ref` to what is read
            from now on instead of the node's value. The node that it gets reads that already.

    Returns:
        The graph, without what no output needs any more.

    Example:
        >>> relu = Node("y", "aten.relu.default", (Ref("x"),))
        >>> graph = Graph((), {}, (relu,), {"x": Ref("x")}, Ref("y"))
        >>> rewrite(graph, lambda node: Ref("x") if node.short_op == "relu" else node).outputs
        Ref(name='x')
    """
    nodes: list[Node] = []
    constants = dict(graph.constants)
    read_instead: dict[str, str] = {}
    for node in graph.nodes:
        parts = rule(node.renamed(read_instead))
        for part in [parts] if isinstance(parts, Part) else parts:
            if isinstance(part, Node):
                nodes.append(part)
            elif isinstance(part, Constant):
                constants[part.name] = part.tensor
            else:
                read_instead[node.name] = part.name
    changed = replace(graph, nodes=tuple(nodes), constants=constants)
    return changed.returning(read_instead).pruned()
