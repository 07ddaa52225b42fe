"""Arguments of another kind than a function takes: one clear error for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from octavo.errors import InputError


def described(value: object) -> str:
    """What it is, in words.

    Example:
        >>> described(None), described(3), described(dict)
        ('None', 'an int', 'the class dict')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def require(value: object, kind: type | tuple[type, ...], name: str, way_out: str) -> None:
    """Refuse what is not of the kind.

    Args:
        value: what was given.
        kind: what it has to be.
        name: of the argument.
        way_out: what to give, as a clause.

    Raises:
        InputError: it is of another kind.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} is {described(value)}: {way_out}")


def require_batches(data: object, name: str) -> None:
    """Refuse what holds no batches.

    Raises:
        InputError: it is no iterable, or one whose items are no batches: a tensor, a text, a dict.
    """
    if not isinstance(data, Iterable) or isinstance(data, _NO_BATCHES):
        raise InputError(
            f"{name} is {described(data)}: give an iterable of batches, a DataLoader or a list "
            "such as [images]"
        )


_NO_BATCHES: tuple[Any, ...] = (Tensor, str, bytes, Mapping, nn.Module, type)
