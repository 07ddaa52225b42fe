"""Is a graph that comes from a file sound? Its names, its operators, and the tensors they make.

The last is found by running the graph on meta tensors, which have a shape and a dtype but no
memory: what passes does what it declares, so that kernels can be chosen by the declarations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo import operators
from octavo.errors import ArtifactError, CaptureError
from octavo.graph import Graph, Input, Node, TensorMeta, map_refs, refs_in

# Stands for a value whose shape depends on other values, and for all that is made of it.
_UNKNOWN = object()
_LARGEST_INTEGER = 2**63 - 1
# On meta tensors torch does not look at their bias, the third argument.
_BIASED = frozenset({"conv1d", "conv2d", "conv3d", "linear"})
_TORCH_NAMES = ("ScalarType", "Layout", "MemoryFormat")


def check(graph: Graph) -> None:
    """Check names, operators, arguments, shapes and dtypes.

    Raises:
        ArtifactError: a name is missing or used twice, an operator is not allowed or does not take
            its arguments, or a result is not what the graph declares.
    """
    _check_names(graph)
    values: dict[str, Any] = {name: t.to("meta") for name, t in graph.constants.items()}
    values |= {given.name: _example(given) for given in graph.inputs}
    with torch.no_grad():
        for node in graph.nodes:
            result = _result(node, values)
            _check_result(node, result)
            values[node.name] = result


def _example(given: Input) -> Tensor:
    try:
        return torch.empty(given.sizes, dtype=getattr(torch, given.meta.dtype), device="meta")
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ArtifactError(f"its input {given.name!r} cannot be: {error}") from None


def _check_names(graph: Graph) -> None:
    """Names are unique and defined before use."""
    known = {given.name for given in graph.inputs} | set(graph.constants)
    if len(known) != len(graph.inputs) + len(graph.constants):
        raise ArtifactError("its graph gives one name to two tensors")
    for node in graph.nodes:
        unknown = [name for name in node.refs() if name not in known]
        if unknown or node.name in known:
            raise ArtifactError(f"its node {node.name!r} is defined twice or reads {unknown}")
        known.add(node.name)
    argument_names = sorted(refs_in(dict(graph.arguments)))
    if argument_names != sorted(given.name for given in graph.inputs):
        raise ArtifactError("its arguments do not give each input once")
    missing = [name for name in graph.output_names() if name not in known]
    if missing:
        raise ArtifactError(f"its outputs {missing} are not made by the graph")


def _result(node: Node, values: dict[str, Any]) -> Any:
    """What a node makes of meta tensors."""
    try:
        operator = operators.resolve(node.op)
    except CaptureError as error:
        raise ArtifactError(f"its node {node.name!r}: {error}") from None
    if any(values[name] is _UNKNOWN for name in node.refs()):
        return _UNKNOWN
    args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: values[ref.name])
    try:
        _check_arguments(node, operator, args, kwargs)
        result = operator(*_on_meta(args), **_on_meta(kwargs))
    except Exception as error:  # noqa: BLE001  (whatever an altered graph makes an operator say)
        if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
            return _UNKNOWN
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArtifactError(
            f"its node {node.name!r}: {node.op} does not take its arguments ({first_line[:200]})"
        ) from None
    return _on_meta(result)


def _check_arguments(
    node: Node, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """What operators do not check themselves.

    Python's take sizes here: no lists, no text, no endless integers. Torch's take a number in place
    of a dtype, and break where it is not the number of one.
    """
    if node.op.startswith("python.") and node.op != "python.getitem":
        for arg in (*args, *kwargs.values()):
            if not isinstance(arg, int | float) or abs(arg) > _LARGEST_INTEGER:
                raise TypeError(f"{arg!r} is not a size")
    bias = args[2] if node.short_op in _BIASED and len(args) > 2 else None
    if isinstance(bias, Tensor) and bias.shape != args[1].shape[:1]:
        raise TypeError(f"a bias of shape {list(bias.shape)} for {len(args[1])} outputs")
    schema = getattr(operator, "_schema", None)
    for index, argument in enumerate(schema.arguments if schema is not None else ()):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        is_name = any(kind in str(argument.real_type) for kind in _TORCH_NAMES)
        if is_name and isinstance(value, int):
            raise TypeError(f"{value!r} is not a {argument.name}")


def _on_meta(value: Any) -> Any:
    """Devices and tensors, in lists too, moved to the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, torch.device):
        return torch.device("meta")
    if isinstance(value, list | tuple):
        return type(value)(map(_on_meta, value))
    if isinstance(value, dict):
        return {key: _on_meta(item) for key, item in value.items()}
    return value


def _check_result(node: Node, result: Any) -> None:
    if result is _UNKNOWN:
        return
    found = TensorMeta.of(result) if isinstance(result, Tensor) else None
    declared = node.meta
    if found is declared is None or (found and declared and found.fits(declared)):
        return
    raise ArtifactError(f"its node {node.name!r} makes {found}, the graph declares {declared}")
