"""Is a graph that comes from a file sound? Its names, its operators, and the tensors they make.

Every operator is checked on shapes and dtypes alone, in the graph's order: its arguments are of
kinds and values that it takes from a file, its result is what the graph declares, and all results
together stay within what such a file may ask for. So kernels can be chosen by the declarations, and
nothing runs before all of it is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from octavo.errors import ArtifactError, CaptureError, first_line
from octavo.graph import operators
from octavo.graph.graph import Graph, Node, TensorMeta, map_refs, refs_in
from octavo.graph.soundness import budget, schemas, shapes
from octavo.graph.soundness.shapes.common import made

# More than any model has; lowering and calling take time for each.
_MOST_NODES, _MOST_OUTPUTS = 100_000, 10_000
# They count the values when they run.
_RESHAPING = frozenset({"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"})


def check(graph: Graph) -> None:
    """Check names, operators, arguments, shapes, dtypes, and the memory and time that a run takes.

    Raises:
        ArtifactError: a name is missing or used twice, an operator is not allowed or does not take
            its arguments, a result is not what the graph declares, or it asks for too much.
    """
    _check_names(graph)
    values = _given(graph)
    limits = _budget(graph, values)
    open_sizes: set[str] = set()  # whose sizes depend on values
    for node in graph.nodes:
        operator = _operator(node)
        is_open = node.short_op in shapes.OPEN or not open_sizes.isdisjoint(node.refs())
        result, cost = _result(node, operator, values, is_open)
        if is_open:
            open_sizes.add(node.name)
        try:
            limits.spend(result, cost)
        except ValueError as error:
            raise ArtifactError(f"its node {node.name!r}: {node.op} {error}") from None
        values[node.name] = result
    try:
        limits.check_together(graph, values)
    except ValueError as error:
        raise ArtifactError(f"its graph {error}") from None


def _given(graph: Graph) -> dict[str, Any]:
    """Inputs, as in the captured example, and constants: shapes and dtypes."""
    sizes = {i.name: (i.sizes, operators.dtype_of(i.meta.dtype)) for i in graph.inputs}
    sizes |= {name: (tensor.shape, tensor.dtype) for name, tensor in graph.constants.items()}
    values = {}
    for name, (shape, dtype) in sizes.items():
        try:
            values[name] = made(shape, dtype)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"its input {name!r} cannot be: {error}") from None
        if len(shape) > schemas.MOST_DIMENSIONS or dtype not in schemas.DTYPES:
            raise ArtifactError(f"its tensor {name!r} is a {dtype} of {len(shape)} axes")
    return values


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


def _operator(node: Node) -> Any:
    try:
        return operators.resolve(node.op)
    except CaptureError as error:
        raise ArtifactError(f"its node {node.name!r}: {error}") from None


def _result(
    node: Node, operator: Any, values: Mapping[str, Any], is_open: bool
) -> tuple[Any, tuple[int, int]]:
    """What a node makes, and what that costs."""
    args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: values[ref.name])
    try:
        if node.op == "python.getitem":
            result, cost = _item(*args, **kwargs), (0, 0)
        elif node.op.startswith("python."):
            result, cost = schemas.sizes(operator, args, kwargs), (0, 0)
        else:
            bound = schemas.bound(operator, args, kwargs)
            result = _made(node, operator, bound, is_open)
            cost = budget.cost_of(node.short_op, bound, result)
    except Exception as error:  # noqa: BLE001  (whatever an altered graph makes an operator say)
        raise ArtifactError(
            f"its node {node.name!r}: {node.op} does not take its arguments "
            f"({first_line(error)[:200]})"
        ) from None
    _check_result(node, result)
    return result, cost


def _item(items: Any, index: Any) -> Any:
    if not isinstance(items, list | tuple) or type(index) is not int:
        raise TypeError(f"{index!r:.80} of something that is not a list")
    return items[index]


def _made(node: Node, operator: Any, bound: Mapping[str, Any], is_open: bool) -> Any:
    """What an operator makes; behind open sizes, a reshaping's declaration is believed."""
    try:
        return shapes.result_of(node.op, operator, bound)
    except ValueError:
        if not is_open or node.op not in _RESHAPING or node.meta is None:
            raise
    most = bound["self"].numel()
    shape = [most if size is None else size for size in node.meta.shape]
    return made(shape, bound["self"].dtype)


def _check_result(node: Node, result: Any) -> None:
    meta = TensorMeta.of(result) if isinstance(result, Tensor) else None
    declared = node.meta
    if meta is declared is None or (meta and declared and meta.fits(declared)):
        return
    raise ArtifactError(f"its node {node.name!r} makes {meta}, the graph declares {declared}")
