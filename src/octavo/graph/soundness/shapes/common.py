"""What the rules for shapes share: tensors that are only a shape and a dtype, and requirements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# From an operator and all its arguments by name to what it makes.
Rule = Callable[[Any, Mapping[str, Any]], Any]


def made(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of this shape and dtype, on the meta device.

    Raises:
        ValueError: there is none.
    """
    require(all(size >= 0 for size in shape), f"no tensor has the shape {list(shape)}")
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def require(condition: bool, problem: str) -> None:
    """Raise a ValueError unless something holds."""
    if not condition:
        raise ValueError(problem)


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape of an elementwise operator's result.

    Example:
        >>> broadcast((4, 1), (3,))
        (4, 3)
    """
    result = [1] * max((len(shape) for shape in shapes), default=0)
    for shape in shapes:
        for place, size in enumerate(shape, len(result) - len(shape)):
            require(size == 1 or result[place] in (1, size), f"{[*map(list, shapes)]} do not fit")
            result[place] = size if result[place] == 1 else result[place]
    return tuple(result)


def axis_of(dim: int, count: int) -> int:
    """An axis counted from the front, of ``count``."""
    require(-max(1, count) <= dim < max(1, count), f"there is no axis {dim} of {count}")
    return dim % max(1, count)


def each(value: Any, count: int) -> list[int]:
    """A number for each of ``count`` axes, where one may stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    values = values * count if len(values) == 1 else values
    require(len(values) == count, f"{values} are not {count} numbers")
    return values


def on_sample(operator: Any, values: Mapping[str, Any]) -> Any:
    """What an operator makes of ones, one element a tensor, with as many axes as they have.

    It says whether the operator takes such arguments, and of what dtype its results are.
    """
    return operator(**{name: _sampled(value) for name, value in values.items()})


def _sampled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.ones((1,) * value.dim(), dtype=value.dtype)
    if isinstance(value, list | tuple):
        return type(value)(map(_sampled, value))
    return value
