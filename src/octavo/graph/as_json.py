"""A graph as JSON, and back with every part checked, since the JSON may come from anywhere."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ArtifactError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.records import Kind, Record, kind_of
from octavo.graph.size_guards import Guard, checked
from octavo.graph.soundness.soundness import check

# What torch names in an operator's arguments: kind -> type, looked up by name in torch itself.
_TORCH_NAMES: dict[str, type[Any]] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def to_json(graph: Graph) -> dict[str, Any]:
    """The graph without its constants' values, as JSON-ready data.

    Raises:
        ArtifactError: an argument is of a kind that no file can hold.
    """
    return {
        "inputs": [_encode_input(entry) for entry in graph.inputs],
        "nodes": [_encode_node(node) for node in graph.nodes],
        "arguments": [[name, encode(tree)] for name, tree in graph.arguments.items()],
        "outputs": encode(graph.outputs),
        "guards": [[guard.condition, guard.reason] for guard in graph.guards],
    }


def from_json(
    data: Any,
    constants: Mapping[str, Tensor],
    upgrade: Callable[[Graph], Graph] = lambda graph: graph,
) -> Graph:
    """The graph that `to_json` wrote, around these constants.

    Args:
        data: the JSON.
        constants: the graph's.
        upgrade: makes today's graph of an older version's, before it is checked.

    Raises:
        ArtifactError: the data is not a graph, names an operator that is not allowed or a value
            that does not exist, or calls an operator in a way that it does not take.
    """
    try:
        graph = Graph(
            tuple(decode_input(*item) for item in data["inputs"]),
            constants,
            tuple(_decode_node(item) for item in data["nodes"]),
            {_text(name): decode(tree) for name, tree in data["arguments"]},
            decode(data["outputs"]),
        )
        graph = upgrade(replace(graph, guards=decode_guards(data, graph.inputs)))
        if broken := graph.broken_guard({entry.name: entry.sizes for entry in graph.inputs}):
            raise ValueError(f"its example does not satisfy its guard {broken}")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"its graph is malformed: {type(error).__name__}: {error}") from None
    check(graph)
    return graph


def decode_guards(data: Any, inputs: Sequence[Input]) -> tuple[Guard, ...]:
    """The guards of a graph's JSON; in files of before there were guards there are none.

    Raises:
        ValueError, TypeError: they are malformed.
    """
    ranks = {entry.name: len(entry.meta.shape) for entry in inputs}
    return tuple(
        Guard(checked(condition, ranks), _text(reason))
        for condition, reason in data.get("guards", [])
    )


def encode(value: Any) -> Any:
    """An argument or a tree of them as JSON-ready data."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = zip(value._fields, map(encode, value), strict=True)
        return {"namedtuple": [type(value).__name__, [list(pair) for pair in pairs]]}
    if type(value).__module__ == "torch.return_types":
        return {"return_type": [type(value).__name__, [encode(item) for item in value]]}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, Mapping):
        entries = [[_key(key), encode(item)] for key, item in value.items()]
        stands_for = kind_of(value) if isinstance(value, Record) else None
        if stands_for is not None:
            return {"object": [stands_for.name, list(stands_for.absent), entries]}
        return {_MAPPINGS.get(type(value), "dict"): entries}
    if isinstance(value, torch.device):
        return {"device": "model"}
    for kind, of_type in _TORCH_NAMES.items():
        if isinstance(value, of_type):
            return {kind: str(value).removeprefix("torch.")}
    raise ArtifactError(f"a {type(value).__name__} among the arguments cannot be saved")


def decode(data: Any) -> Any:
    """What `encode` wrote; a device is always the CPU, until the model is moved."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(item) for item in data]
    ((kind, content),) = data.items()
    return _DECODERS[kind](content)


def _torch_name(kind: str) -> Callable[[Any], Any]:
    def find(name: Any) -> Any:
        value = vars(torch).get(_text(name))
        if not isinstance(value, _TORCH_NAMES[kind]):
            raise ValueError(f"{name!r} is not a torch {kind}")
        return value

    return find


def _pairs(kind: type[dict[Any, Any]]) -> Callable[[Any], dict[Any, Any]]:
    return lambda content: kind((_key(key), decode(value)) for key, value in content)


def _return_type(content: Any) -> Any:
    name, items = content
    of_type = vars(torch.return_types).get(_text(name))
    if not (isinstance(of_type, type) and issubclass(of_type, tuple)):
        raise ValueError(f"{name!r} is not a torch return type")
    return of_type([decode(item) for item in items])


def _record(content: Any) -> Record:
    return Record((_text(key), decode(value)) for key, value in content)


def _object(content: Any) -> Record:
    name, absent, pairs = content
    return Record.of(Kind(_text(name), tuple(map(_text, absent))), _record(pairs).items())


def _namedtuple(content: Any) -> Any:
    name, fields = content
    return namedtuple(name, [_text(key) for key, _ in fields])(*(decode(v) for _, v in fields))


_MAPPINGS: dict[type, str] = {Record: "record", OrderedDict: "ordered_dict"}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "ref": lambda content: Ref(_text(content)),
    "tuple": lambda content: tuple(decode(item) for item in content),
    "float": lambda content: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content],
    "device": lambda content: torch.device("cpu"),
    "namedtuple": _namedtuple,
    "return_type": _return_type,
    "dict": _pairs(dict),
    "ordered_dict": _pairs(OrderedDict),
    "record": _record,
    "object": _object,
} | {kind: _torch_name(kind) for kind in _TORCH_NAMES}


def _encode_input(entry: Input) -> list[Any]:
    shape, dtype, seen = list(entry.meta.shape), entry.meta.dtype, entry.seen
    bounds = None if seen is None else [encode(bound) for bound in seen]
    return [entry.name, shape, dtype, list(entry.sizes), bounds, list(entry.axes)]


def decode_input(
    name: Any, shape: Any, dtype: Any, example: Any, seen: Any = None, axes: Any = ()
) -> Input:
    """In files of earlier versions there are no names of sizes, and no range of values."""
    meta = _meta([shape, dtype])
    names = tuple(map(_text, axes))
    if names and [not named for named in names] != [size is not None for size in meta.shape]:
        raise ValueError(f"{axes!r} are not the names of the open sizes of {meta}")
    sizes = tuple(size for size in _meta([example, dtype]).shape if size is not None)
    if not TensorMeta(sizes, meta.dtype).fits(meta):
        raise ValueError(f"{example!r} is not an example of {meta}")
    if seen is None:
        return Input(_text(name), meta, sizes, axes=names)
    low, high = (decode(bound) for bound in seen)
    if not all(isinstance(b, int | float) for b in (low, high)) or not low <= high:
        raise ValueError(f"{seen!r} is not a range of values")
    return Input(_text(name), meta, sizes, (float(low), float(high)), names)


def _encode_node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "args": [encode(arg) for arg in node.args],
        "kwargs": {key: encode(value) for key, value in node.kwargs.items()},
        "meta": None if node.meta is None else [list(node.meta.shape), node.meta.dtype],
        "module": node.module,
        "module_type": node.module_type,
    }


def _decode_node(data: Any) -> Node:
    return Node(
        _text(data["name"]),
        _text(data["op"]),
        tuple(decode(arg) for arg in data["args"]),
        {_text(key): decode(value) for key, value in data["kwargs"].items()},
        None if data["meta"] is None else _meta(data["meta"]),
        _text(data["module"]),
        _text(data["module_type"]),
    )


def _meta(data: Any) -> TensorMeta:
    shape, dtype = data
    if not all(size is None or (type(size) is int and size >= 0) for size in shape):
        raise ValueError(f"{shape!r} is not a shape")
    _torch_name("dtype")(dtype)
    return TensorMeta(tuple(shape), dtype)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a name")
    return value


def _key(value: Any) -> str | int:
    if not isinstance(value, str | int):
        raise ArtifactError(f"the key {value!r} of a dict cannot be saved; use text or numbers")
    return value
