"""The objects that a model takes and returns, and the records that stand for them in a graph.

A graph holds data and no objects. So an object of some class (an output of transformers, a data
class, a cache of keys and values) stands in it as a `Record`, which knows the name of that class. A
call gives an object of the class back where this process has it, and elsewhere the record itself,
which can do what such an object can.

A name may come from a file. So nothing is imported because of one: it is looked up among the data
classes that pytree has been told of, and the caches in `_CACHES`.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Objects with attributes that are values in themselves.
_VALUES = (Tensor, nn.Module, torch.SymInt, torch.SymFloat, torch.SymBool, type)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a record stands for.

    Attributes:
        name: of the class: ``"transformers.modeling_outputs.SequenceClassifierOutput"``.
        absent: its fields that are ``None``.
    """

    name: str
    absent: tuple[str, ...] = ()


class Record(dict[str, Any]):
    """A mapping whose entries are attributes and items of a tuple too: what an object becomes.

    Example:
        >>> record = Record(logits=1)
        >>> record.logits, record["logits"], record[0], record.to_tuple()
        (1, 1, 1, (1,))
    """

    _kind: Kind | None = None

    @classmethod
    def of(cls, kind: Kind | None, entries: Iterable[tuple[str, Any]]) -> Record:
        """A record that stands for an object."""
        record = cls(entries)
        record._kind = kind
        return record

    def with_first(self, name: str, value: Any) -> Record:
        """The record with this entry before the others."""
        kind = self._kind
        if kind is not None:
            kind = replace(kind, absent=tuple(n for n in kind.absent if n != name))
        return Record.of(kind, [(name, value), *((n, v) for n, v in self.items() if n != name)])

    def without(self, names: Collection[str]) -> Record:
        """The record without some entries, which are ``None`` then."""
        kind, out = self._kind, [name for name in self if name in names]
        if kind is not None:
            kind = replace(kind, absent=(*kind.absent, *out))
        return Record.of(kind, [(n, value) for n, value in self.items() if n not in names])

    def to_tuple(self) -> tuple[Any, ...]:
        """The entries without their names."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if self._kind is not None and name in self._kind.absent:
            return None
        raise AttributeError(name)


def kind_of(record: Record) -> Kind | None:
    """What a record stands for; ``None`` where it stands for itself."""
    return record._kind


pytree.register_pytree_node(
    Record,
    lambda record: (list(record.values()), [list(record), kind_of(record)]),
    lambda values, context: Record.of(context[1], zip(context[0], values, strict=True)),
    serialized_type_name="octavo.graph.Record",
    flatten_with_keys_fn=lambda record: (
        [(pytree.MappingKey(key), value) for key, value in record.items()],
        [list(record), kind_of(record)],
    ),
)


def record_of(of_type: type, context: Any, children: Sequence[Any]) -> Record | None:
    """What stands for an object that pytree took apart.

    Args:
        of_type: its class.
        context: what pytree keeps of it: the names of its children, and in a list behind them,
            as of data classes, the fields that are ``None``.
        children: what it holds.

    Returns:
        ``None`` where the context is not one of names.
    """
    keys, absent = context, None
    if isinstance(keys, list | tuple) and keys and isinstance(keys[0], list | tuple):
        keys, absent = keys[0], keys[1] if len(keys) > 1 else ()
    if not isinstance(keys, list | tuple) or len(keys) != len(children):
        return None
    entries = list(zip(map(str, keys), children, strict=True))
    if of_type is Record:
        return Record.of(context[1], entries)
    if not dataclasses.is_dataclass(of_type):
        return Record(entries)
    if absent is None:
        absent = [f.name for f in dataclasses.fields(of_type) if f.name not in keys]
    kind = Kind(_name_of(of_type), tuple(absent))
    return Record.of(kind if _fits(of_type, kind, dict(entries)) else None, entries)


def as_records(result: Any) -> Any:
    """A model's result with each object that pytree does not know as a `Record`.

    Such as the cache of a language model. The record has those attributes that hold tensors: a
    result is data, and what else an object knows is the model's own.
    """
    return _as_records(result, frozenset())


def _as_records(tree: Any, around: frozenset[int]) -> Any:
    """``around`` are the objects that the tree is an attribute of: one may know its owner."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, _VALUES) or not hasattr(leaf, "__dict__") or id(leaf) in around:
            return leaf
        if is_cache(leaf):
            return cache_record(leaf)
        inside = around | {id(leaf)}
        parts = {name: _as_records(value, inside) for name, value in vars(leaf).items()}
        held = {name: part for name, part in parts.items() if _holds_tensors(part)}
        return Record(held) if held else leaf

    return pytree.tree_map(convert, tree, is_leaf=is_cache)


def _holds_tensors(tree: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(tree))


def without_caches(arguments: Any) -> Any:
    """A call's arguments with a record in the place of each cache, of which forward would change
    the caller's own.
    """
    return pytree.tree_map(
        lambda leaf: cache_record(leaf) if is_cache(leaf) else leaf, arguments, is_leaf=is_cache
    )


def with_objects(tree: Any) -> Any:
    """A structure with an object in the place of each record, where this process has its class."""
    if isinstance(tree, Record):
        kind, entries = kind_of(tree), {key: with_objects(value) for key, value in tree.items()}
        made = _object(kind, entries)
        return Record.of(kind, entries.items()) if made is None else made
    if type(tree) in (dict, OrderedDict):
        return type(tree)((key, with_objects(value)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        items = [with_objects(item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def _object(kind: Kind | None, entries: Mapping[str, Any]) -> Any:
    if kind is None:
        return None
    if kind.name in _CACHES:
        return _CACHES[kind.name].make(entries) if "transformers" in sys.modules else None
    of_type = _class(kind.name)
    if of_type is None or not _fits(of_type, kind, entries):
        return None
    return of_type(**entries, **dict.fromkeys(kind.absent))


def _fits(of_type: Any, kind: Kind, entries: Mapping[str, Any]) -> bool:
    """Whether an object can be made of these fields."""
    fields = [field for field in dataclasses.fields(of_type) if field.init]
    given = {*entries, *kind.absent}
    needed = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return needed <= given <= {field.name for field in fields}


def _class(name: str) -> Any:
    """The data class of this name that pytree knows; ``None`` where there is none."""
    if "transformers" in sys.modules:
        import_module("transformers.modeling_outputs")  # which tells pytree of its classes
    return _data_classes(len(pytree.SUPPORTED_NODES)).get(name)


@lru_cache(maxsize=1)
def _data_classes(count: int) -> Mapping[str, type]:
    """Those that pytree knows, by name; it is looked through anew when it knows of more."""
    return {_name_of(c): c for c in pytree.SUPPORTED_NODES if dataclasses.is_dataclass(c)}


def _name_of(of_type: type) -> str:
    return f"{of_type.__module__}.{of_type.__qualname__}"


@dataclass(frozen=True)
class _Cache:
    """How a cache of keys and values is taken apart and put together.

    Attributes:
        entries: what it holds; ``None`` where it knows more than that.
        make: a cache of such entries.
    """

    entries: Callable[[Any], dict[str, Any] | None]
    make: Callable[[Mapping[str, Any]], Any]


def is_cache(value: Any) -> bool:
    """Whether it is a cache that a record can stand for."""
    kind = _CACHES.get(_name_of(type(value)))
    return kind is not None and kind.entries(value) is not None


OTHER_CACHE = (
    "of caches a graph takes a DynamicCache of transformers, filled and with plain layers; with "
    'scope="regions" or "modules" the model runs as it is written, and takes any'
)


def is_other_cache(value: Any) -> bool:
    """Whether it is a cache that no record stands for: one of a fixed size, or that slides."""
    return hasattr(value, "get_seq_length") and not is_cache(value)


def own_caches(arguments: Any) -> Any:
    """A call's arguments with a copy of each such cache, which the call may fill."""
    return pytree.tree_map(
        lambda leaf: copy.deepcopy(leaf) if is_other_cache(leaf) else leaf,
        arguments,
        is_leaf=is_other_cache,
    )


def cache_record(cache: Any) -> Record:
    """The record of a cache."""
    name = _name_of(type(cache))
    entries = _CACHES[name].entries(cache) or {}
    return Record.of(Kind(name), entries.items())


def _layers(cache: Any) -> dict[str, Any] | None:
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
        return None  # one that slides, say, knows how far
    if any(layer.keys is None for layer in layers):
        return None
    pairs = [Record(keys=layer.keys, values=layer.values) for layer in layers]
    return {"layers": pairs}


def _dynamic_cache(entries: Mapping[str, Any]) -> Any:
    module = import_module("transformers.cache_utils")
    cache = module.DynamicCache()
    for pair in entries["layers"]:
        layer = module.DynamicLayer()
        layer.lazy_initialization(pair["keys"], pair["values"])
        layer.keys, layer.values = pair["keys"], pair["values"]
        cache.layers.append(layer)
    return cache


def _both_caches(cache: Any) -> dict[str, Any] | None:
    both = {name: getattr(cache, name, None) for name in _BOTH}
    return (
        {n: cache_record(c) for n, c in both.items()} if all(map(is_cache, both.values())) else None
    )


def _encoder_decoder_cache(entries: Mapping[str, Any]) -> Any:
    module = import_module("transformers.cache_utils")
    return module.EncoderDecoderCache(*(entries[name] for name in _BOTH))


_BOTH = ("self_attention_cache", "cross_attention_cache")
_CACHES = {
    "transformers.cache_utils.DynamicCache": _Cache(_layers, _dynamic_cache),
    "transformers.cache_utils.EncoderDecoderCache": _Cache(_both_caches, _encoder_decoder_cache),
}
