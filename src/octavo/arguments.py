"""Arguments of another kind than a public function takes: one clear error for each.

Example:
    >>> expect(COUNT, threads="2")
    Traceback (most recent call last):
    octavo.errors.InputError: threads is a str: give a whole number of 1 or more
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from octavo.errors import InputError


@dataclass(frozen=True)
class Kind:
    """What an argument may be.

    Attributes:
        fits: whether a value is of the kind.
        way_out: what to give, as a clause.
    """

    fits: Callable[[Any], bool]
    way_out: str


def expect(kind: Kind, **values: Any) -> None:
    """Refuse what is of another kind.

    Args:
        kind: what they have to be.
        values: the arguments, by their names.

    Raises:
        InputError: one is of another kind.
    """
    for name, value in values.items():
        if not kind.fits(value):
            raise InputError(f"{name} is {described(value)}: {kind.way_out}")


def optional(kind: Kind, **values: Any) -> None:
    """`expect`, where ``None`` is allowed.

    Raises:
        InputError: one is of another kind.
    """
    expect(kind, **{name: value for name, value in values.items() if value is not None})


def expect_repeatable(needed: str, **data: Any) -> None:
    """Refuse what is no iterable of batches, or can be iterated only once.

    Args:
        needed: who needs it again, as a clause.
        data: the arguments, by their names; ``None`` is allowed.

    Raises:
        InputError: one is such data.
    """
    optional(BATCHES, **data)
    for name, batches in data.items():
        if batches is not None and iter(batches) is batches:
            raise InputError(
                f"{name} can be iterated only once, and {needed}: pass a list or a DataLoader"
            )


def of(*types: type, way_out: str) -> Kind:
    """The instances of some types."""
    return Kind(lambda value: isinstance(value, types), way_out)


def described(value: object) -> str:
    """What it is, in words.

    Example:
        >>> described(None), described(dict), described({}), described(0)
        ('None', 'the class dict', 'a dict', '0')
    """
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def _is_batches(value: Any) -> bool:
    no_batches = (Tensor, str, bytes, Mapping, nn.Module, type)
    return isinstance(value, Iterable) and not isinstance(value, no_batches)


def _is_count(value: Any) -> bool:
    return _is_index(value) and value >= 1


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


BATCHES = Kind(
    _is_batches,
    "give an iterable of batches, a DataLoader or a list such as [images]",
)
COUNT = Kind(_is_count, "give a whole number of 1 or more")
SHARE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "give a number from 0 to 1")
INTEGER = Kind(_is_index, "give a whole number")
NUMBER = Kind(_is_number, "give a number")
NAMES = Kind(_is_names, 'give a list of names, ["torch"]')
TEXT = of(str, way_out="give its name, a str")
FUNCTION = Kind(callable, "give a function")
FILE = of(
    *(str, os.PathLike),
    way_out="give the path of a file; q.save(path) writes a quantized model to one",
)
PATH = of(str, os.PathLike, way_out="give a path, a str or a pathlib.Path")
