"""The graph as rows, one for each kernel, with lanes beside them for what skips a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octavo.graph.graph import Graph, Node
from octavo.measuring.layers import LayerErrors
from octavo.measuring.modules import plan_of_modules
from octavo.measuring.regions import named
from octavo.model.model import QuantizedModel
from octavo.model.nn import QuantizedModule
from octavo.quantization.bfloat16 import in_float32
from octavo.quantization.plan import Plan

_SIZES = frozenset({"sym_size", "getitem"})  # no kernel runs them
LANES = 6  # side by side; edges beyond share the outermost


@dataclass(frozen=True)
class Row:
    """One kernel, or an input.

    Attributes:
        name: the layer whose value it returns.
        op: what it computes: the operators that were fused into it, joined by ``+``.
        runs: ``"int8"``, ``"dynamic"``, ``"weight_only"``, ``"bfloat16"``, ``"float"``,
            ``"input"``, or ``"region"``, whose kernels the rows behind it are.
        sqnr_db: of the error that it makes by itself; ``None`` where it was not measured.
        accumulated_db: with the error of all before it.
        reason: the plan's, in words.
    """

    name: str
    op: str
    runs: str
    sqnr_db: float | None
    accumulated_db: float | None
    reason: str


@dataclass(frozen=True)
class Edge:
    """From row ``start`` to row ``end``; ``lane`` 0 is the straight line to the next row."""

    start: int
    end: int
    lane: int


@dataclass(frozen=True)
class Layout:
    """Rows in the order of the graph, and the edges between them."""

    rows: tuple[Row, ...]
    edges: tuple[Edge, ...]


def layout_of(graphs: Mapping[str, QuantizedModel], errors: LayerErrors) -> Layout:
    """Lay out the graphs of a model, one below the other.

    Args:
        graphs: of `octavo.measuring.regions.graphs_in`.
        errors: from `octavo.layer_errors`.
    """
    rows: list[Row] = []
    edges: list[Edge] = []
    for path, q in graphs.items():
        if path:
            kind = "graph" if q.place is None else q.place.kind
            rows.append(Row(path, kind, "region", None, None, q.summary().headline))
        own, above = layout(q.graph, q.plan, errors, path), len(rows)
        rows += own.rows
        edges += [Edge(edge.start + above, edge.end + above, edge.lane) for edge in own.edges]
    return Layout(tuple(rows), tuple(edges))


def layout_of_modules(modules: Mapping[str, QuantizedModule], errors: LayerErrors) -> Layout:
    """The modules of `octavo.nn`, in the order in which the model has them; who reads whom is
    decided by its Python.
    """
    measured = {row.tensor: row for row in errors.rows if row.kind != "weight"}
    planned, rows = plan_of_modules(modules).tensors, []
    for path, module in modules.items():
        error = measured.get(path)
        rows.append(
            Row(
                name=path,
                op=module.operator,
                runs=module.runs,
                sqnr_db=None if error is None else error.sqnr_db,
                accumulated_db=None if error is None else error.accumulated_sqnr_db,
                reason=str(planned[path].reason),
            )
        )
    return Layout(tuple(rows), ())


def layout(graph: Graph, plan: Plan, errors: LayerErrors, path: str = "") -> Layout:
    """Lay out a quantized graph.

    Args:
        graph: the canonical quantized graph.
        plan: its plan.
        errors: from `octavo.layer_errors`, of the whole model.
        path: where in the model the graph stands.
    """
    graph = in_float32(graph)  # in which layers in bfloat16 have the plan's names
    kernels = _kernels(graph, plan)
    pairs = _edges(graph, kernels)
    shown = [name for name in plan.tensors if kernels.get(name) == name]
    place = {name: index for index, name in enumerate(shown)}
    ends = sorted({(place[a], place[b]) for a, b in pairs if a in place and b in place})
    measured = {row.tensor: row for row in errors.rows if row.kind != "weight"}
    rows = []
    for name in shown:
        planned, error = plan.tensors[name], measured.get(named(path, name))
        parts = [plan.tensors[n].op for n, kernel in kernels.items() if kernel == name]
        rows.append(
            Row(
                name=named(path, name),
                op=" + ".join(filter(None, parts)) or "input",
                runs=planned.runs or "input",
                sqnr_db=None if error is None else error.sqnr_db,
                accumulated_db=None if error is None else error.accumulated_sqnr_db,
                reason=str(planned.reason),
            )
        )
    return Layout(tuple(rows), _laned(ends))


def _kernels(graph: Graph, plan: Plan) -> dict[str, str]:
    """For each activation and input of the plan, the one whose kernel computes it."""
    present = set(graph.input_names()) | {node.name for node in graph.nodes}
    return {
        name: plan.kernel_of(name)
        for name, planned in plan.tensors.items()
        if planned.kind != "weight" and name in present and planned.op not in _SIZES
    }


def _edges(graph: Graph, kernels: dict[str, str]) -> set[tuple[str, str]]:
    """Who reads whom; a node that is none of the plan's (it rounds, say) stands for its input."""
    behind = dict(kernels)
    edges = set()
    for node in graph.nodes:
        sources = {behind[name] for name in node.refs() if name in behind}
        if node.name in kernels:
            edges |= {(source, kernels[node.name]) for source in sources}
        elif sources and not _is_size(node):
            behind[node.name] = behind[_first(node, behind)]
    return {(start, end) for start, end in edges if start != end}


def _is_size(node: Node) -> bool:
    return node.short_op == "sym_size" or (
        node.op.startswith("python.") and node.short_op != "getitem"
    )


def _first(node: Node, behind: dict[str, str]) -> str:
    return next(name for name in node.refs() if name in behind)


def _laned(ends: list[tuple[int, int]]) -> tuple[Edge, ...]:
    """Edges that would run over each other in lanes of their own, the shortest inside."""
    free: list[list[tuple[int, int]]] = [[] for _ in range(LANES)]
    edges = []
    for start, end in sorted(ends, key=lambda pair: (pair[1] - pair[0], pair)):
        if end == start + 1:
            edges.append(Edge(start, end, 0))
            continue
        lane = next(
            (n for n, taken in enumerate(free) if all(e <= start or s >= end for s, e in taken)),
            LANES - 1,
        )
        free[lane].append((start, end))
        edges.append(Edge(start, end, lane + 1))
    return tuple(edges)
