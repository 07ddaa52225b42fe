"""Every call of a graph on shapes and dtypes alone: what it reads, makes and costs.

All of it is tested in tests/graph/soundness/test_soundness.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from octavo.errors import ArtifactError, CaptureError, first_line
from octavo.graph import operators
from octavo.graph.graph import Graph, Node, TensorMeta, map_refs
from octavo.graph.soundness import budget, schemas, shapes
from octavo.graph.soundness.shapes.common import made

# They count the values when they run.
_RESHAPING = frozenset({"aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"})


class Call(NamedTuple):
    """A node on shapes alone: its arguments by name, its result, its operations and bytes."""

    node: Node
    arguments: Mapping[str, Any]
    result: Any
    cost: tuple[int, int]


def given(graph: Graph) -> dict[str, Any]:
    """Inputs, as in the captured example, and constants: shapes and dtypes.

    Raises:
        ArtifactError: there is no such tensor.
    """
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


def calls(graph: Graph, values: dict[str, Any]) -> Iterator[Call]:
    """Each node's call, in order; what it makes is put into ``values``.

    Args:
        graph: of names that are there.
        values: as `given` has them.

    Raises:
        ArtifactError: an operator is not allowed or does not take its arguments, or a result is not
            what the graph declares.
    """
    open_sizes: set[str] = set()  # whose sizes depend on values
    for node in graph.nodes:
        operator = _operator(node)
        is_open = node.short_op in shapes.OPEN or not open_sizes.isdisjoint(node.refs())
        call = _call(node, operator, values, is_open)
        if is_open:
            open_sizes.add(node.name)
        values[node.name] = call.result
        yield call


def _operator(node: Node) -> Any:
    try:
        return operators.resolve(node.op)
    except CaptureError as error:
        raise ArtifactError(f"its node {node.name!r}: {error}") from None


def _call(node: Node, operator: Any, values: Mapping[str, Any], is_open: bool) -> Call:
    """What a node reads and makes, and what that costs."""
    args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: values[ref.name])
    bound: dict[str, Any] = {}
    cost = (0, 0)
    try:
        if node.op == "python.getitem":
            result = _item(*args, **kwargs)
        elif node.op.startswith("python."):
            result = schemas.sizes(operator, args, kwargs)
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
    return Call(node, bound, result, cost)


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
