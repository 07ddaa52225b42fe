"""What an operator of a file's graph is given: the kinds and values of its arguments.

Torch's own parser takes more than that: numbers for dtypes, layouts of sparse tensors, sizes that
overflow, lists of any length. Kernels behind it do not all look at what they get.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

MOST_DIMENSIONS = 16  # of a tensor
MOST_TENSORS = 2**14  # in a list, made or given
_MOST = 64  # numbers in a list: sizes, axes, padding
_LONG_LISTS = frozenset({"split_sizes", "indices"})
_LARGEST = (
    2**40
)  # of integers: no size is larger, and sums and products of some stay within 63 bits
_TO_THE_END = 2**63 - 1  # what a slice says
_LONGEST = 200  # equation, in letters

DTYPES = frozenset(
    getattr(torch, name)
    for name in (
        "float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool "
        "complex64 complex128 float8_e4m3fn float8_e5m2"
    ).split()
)
_EQUATION = re.compile(r"[A-Za-z,. ]*(->[A-Za-z. ]*)?")

# Text, by the argument's name.
_WORDS: dict[str, frozenset[str]] = {
    "padding": frozenset({"same", "valid"}),
    "rounding_mode": frozenset({"trunc", "floor"}),
    "norm": frozenset({"ortho", "forward", "backward"}),
    "approximate": frozenset({"none", "tanh"}),
    "ord": frozenset({"fro", "nuc"}),
    "indexing": frozenset({"ij", "xy"}),
    "mode": frozenset({"constant", "reflect", "replicate", "circular"}),
    "reduce": frozenset({"sum", "prod", "mean", "amax", "amin", "add", "multiply"}),
    "side": frozenset({"left", "right"}),
    "interpolation": frozenset({"linear", "lower", "higher", "midpoint", "nearest"}),
}


def bound(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, the defaults among them.

    Raises:
        TypeError: an argument is missing, unknown, given twice, or not of a kind and value that
            the operator takes from a file.

    Example:
        >>> bound(torch.ops.aten.relu.default, (torch.ones(2),), {})["self"].shape
        torch.Size([2])
    """
    declared = operator._schema.arguments
    positional = [argument.name for argument in declared if not argument.kwarg_only]
    if len(args) > len(positional):
        raise TypeError(f"{len(args)} arguments for {len(positional)}")
    given = dict(zip(positional, args, strict=False))
    unknown = [key for key in kwargs if key in given or key not in {a.name for a in declared}]
    if unknown:
        raise TypeError(f"the argument {unknown[0]!r} is unknown or given twice")
    given |= kwargs
    values = {}
    for argument in declared:
        if argument.name in given:
            values[argument.name] = _checked(argument, given[argument.name])
        elif argument.has_default_value():
            values[argument.name] = argument.default_value
        else:
            raise TypeError(f"the argument {argument.name!r} is missing")
    return values


def sizes(operator: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What arithmetic on sizes makes of its arguments.

    Raises:
        TypeError: they or the result are not numbers within 63 bits.
    """
    for value in (*args, *kwargs.values()):
        if not _is_size(value):
            raise TypeError(f"{value!r:.80} is not a size")
    result = operator(*args, **kwargs)
    if not _is_size(result):
        raise TypeError(f"{result!r:.80} is not a size")
    return result


def _is_size(value: Any) -> bool:
    return isinstance(value, bool | int | float) and abs(value) <= _TO_THE_END


def _checked(argument: Any, value: Any) -> Any:
    """The value, if the argument takes it."""
    optional, kind = _stripped("Optional", str(argument.real_type))
    is_list, kind = _stripped("List", kind)
    if value is None and optional:
        return None
    one_for_all = is_list and argument.N is not None and not isinstance(value, list | tuple)
    items: Any = [value]
    if is_list and not one_for_all:
        optional, kind = _stripped("Optional", kind)
        long = kind == "Tensor" or argument.name in _LONG_LISTS
        if not isinstance(value, list | tuple) or len(value) > (MOST_TENSORS if long else _MOST):
            raise TypeError(f"{value!r:.80} is not a list that {argument.name} takes")
        items = value
    for item in items:
        if not ((item is None and optional) or _KINDS[kind](item, argument.name)):
            raise TypeError(f"{item!r:.80} is not a value that {argument.name} takes")
    return value


def _stripped(outer: str, kind: str) -> tuple[bool, str]:
    """Whether a kind is ``outer[inner]``, and the inner one."""
    is_outer = kind.startswith(f"{outer}[")
    return is_outer, kind[len(outer) + 1 : -1] if is_outer else kind


def _is_tensor(value: Any, name: str) -> bool:
    """A number may stand for a tensor without axes."""
    return isinstance(value, Tensor) or _is_number(value, name)


def _is_integer(value: Any, name: str) -> bool:
    return isinstance(value, int) and (abs(value) <= _LARGEST or value == _TO_THE_END)


def _is_number(value: Any, name: str) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= _TO_THE_END)


def _is_truth(value: Any, name: str) -> bool:
    return isinstance(value, bool) and not (value and name == "pin_memory")


def _is_word(value: Any, name: str) -> bool:
    if name == "equation":
        return (
            isinstance(value, str) and len(value) <= _LONGEST and bool(_EQUATION.fullmatch(value))
        )
    return isinstance(value, str) and value in _WORDS.get(name, ())


# By the names that torch's schemas give them. A kind that is not here comes from no file.
_KINDS: dict[str, Callable[[Any, str], bool]] = {
    "Tensor": _is_tensor,
    "int": _is_integer,
    "float": _is_number,
    "number": _is_number,
    "bool": _is_truth,
    "str": _is_word,
    "ScalarType": lambda value, name: isinstance(value, torch.dtype) and value in DTYPES,
    "Layout": lambda value, name: value is torch.strided,
    "MemoryFormat": lambda value, name: isinstance(value, torch.memory_format),
    "Device": lambda value, name: isinstance(value, torch.device),
}
