"""Frozen dataclasses of plain values from JSON that may be damaged."""

from __future__ import annotations

from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from octavo.errors import InputError

T = TypeVar("T")


def from_json(kind: type[T], data: Any) -> T:
    """The record whose fields these are, each of its own type.

    Raises:
        InputError: a field is missing, unknown or of another type.

    Example:
        >>> from octavo.searching.layer_times import LayerTime
        >>> from_json(LayerTime, {"layer": "fc", "float_s": 2, "int8_s": 1, "int8_over_float": 0.5,
        ...                       "quantize_s": 0.1}).slower
        False
    """
    hints = get_type_hints(kind)
    if not isinstance(data, dict) or set(data) != set(hints):
        raise InputError(f"this is not a {kind.__name__.lower()}: {str(data)[:40]!r}")
    for name, value in data.items():
        if not _is_a(value, hints[name]):
            raise InputError(f"its {name} is {str(value)[:40]!r}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _is_a(value: Any, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_is_a(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint
