"""Guards in an ONNX model: a call outside of them fails, where it would give wrong numbers.

ONNX has no assertions. An input is split into all that it has and nothing; where a guard does not
hold, into one sample more than it has, which no runtime can do. (Runtimes see through reshapes like
that, and make what is missing of a gather.)
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from octavo.errors import ExportError
from octavo.graph.graph import Graph, Node
from octavo.graph.open_sizes import tied
from octavo.graph.size_guards import Expression, Guard, sizes_in
from octavo.runtimes.onnx.dialect import Dialect
from octavo.runtimes.onnx.elementwise import floor_divided
from octavo.runtimes.onnx.sizes import length_of
from octavo.runtimes.onnx.writer import Writer

# Operator of an expression -> ONNX's.
_OPERATORS = {
    "+": "Add",
    "*": "Mul",
    "%": "Mod",
    "max": "Max",
    "min": "Min",
    "==": "Equal",
    "<": "Less",
    "<=": "LessOrEqual",
    ">": "Greater",
    ">=": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
}


def with_squeezing_guarded(graph: Graph, dialect: Dialect) -> Graph:
    """The graph that refuses one sample where it squeezes whatever axis has one value.

    ``x.squeeze()`` takes the batch away as well then, and an ONNX model has results of one rank.

    Raises:
        ExportError: the runtime would not refuse it.
    """
    metas = graph.metas
    squeezing = [node for node in graph.nodes if node.op == "aten.squeeze.default"]
    read = {node.name: metas[node.args[0].name] for node in squeezing}
    open_ones = [name for name, meta in read.items() if meta is None or None in meta.shape]
    if not open_ones:
        return graph
    reason = "squeeze() takes the axis of a batch of one away; name the axis: x.squeeze(1)"
    if not dialect.squeezes_batches:
        raise ExportError(f"{open_ones[0]!r} has no ONNX form that is right here: {reason}")
    sizes = (("size", *size) for group in tied(graph) for size in sorted(group))
    guards = tuple(Guard((">", size, 1), reason) for size in sizes)
    return replace(graph, guards=(*graph.guards, *guards))


def write_guards(w: Writer) -> None:
    """Let the model fail for sizes that do not satisfy the graph's guards.

    Sizes that the graph declares need no nodes: runtimes hold callers to these.
    """
    guards = [guard for guard in w.graph.guards if _is_about_open_sizes(guard, w.graph)]
    users = w.graph.users
    read = [entry for entry in w.graph.inputs if users[entry.name] and entry.meta.shape]
    if not guards or not read:
        return
    carrier = read[0]
    node = Node(f"{carrier.name}.guarded", "octavo.guarded")
    with w.writing(node) as finish:
        kept = reduce(
            lambda one, other: w.op("And", one, other),
            (_written(w, guard.condition) for guard in guards),
        )
        excess = w.op("Sub", w.ints([1]), w.cast(kept, "bool", "int64"))
        parts = w.op(
            "Concat", w.op("Add", length_of(w, carrier.name, 0), excess), w.ints([0]), axis=0
        )
        finish(w.ops("Split", carrier.name, parts, outputs=2, axis=0)[0])
    w.values[carrier.name] = w.values[node.name]


def _is_about_open_sizes(guard: Guard, graph: Graph) -> bool:
    shapes = {entry.name: entry.meta.shape for entry in graph.inputs}
    return any(shapes[name][axis] is None for name, axis in sizes_in(guard.condition))


def _written(w: Writer, expression: Expression) -> str:
    """An expression as a vector of one."""
    if isinstance(expression, int):
        return w.ints([expression])
    kind, *args = expression
    if kind == "size":
        return length_of(w, *args)
    values = [_written(w, arg) for arg in args]
    if kind == "//":
        return floor_divided(w, *values)
    if kind in ("not", "!="):
        return w.op("Not", values[0] if kind == "not" else w.op("Equal", *values))
    return reduce(lambda one, other: w.op(_OPERATORS[kind], one, other), values)
