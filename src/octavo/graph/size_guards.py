"""Guards: what the sizes of a graph's inputs must satisfy, since the graph was captured for it.

A capture follows one way through ``forward``. Where that depends on a size (``if len(x) > 2``, a
loop over the rows, a reshape to fixed sizes), the graph is right for sizes that take the same way.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A number, ("size", input, axis), or an operator's name and its arguments, which are such again.
Expression = Any

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_DIVISIONS: dict[str, Callable[[Any, Any], int]] = {
    "//": operator.floordiv,
    "%": operator.mod,
}
_OF_TWO: dict[str, Callable[[Any, Any], Any]] = _COMPARISONS | _DIVISIONS
_OF_MANY: dict[str, Callable[[Sequence[Any]], Any]] = {
    "+": sum,
    "*": math.prod,
    "max": max,
    "min": min,
    "and": all,
    "or": any,
}
_DEEPEST = 50
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition on sizes, and what in ``forward`` needs it.

    Attributes:
        condition: an expression, for example ``("==", ("%", ("size", "x", 0), 2), 0)``.
        reason: whose condition it is, for example ``"forward needs it at net.py:12"``.

    Example:
        >>> guard = Guard(("==", ("%", ("size", "x", 0), 2), 0), "forward needs it at net.py:12")
        >>> str(guard), guard.holds({"x": (4, 3)}), guard.holds({"x": (5, 3)})
        ('x.shape[0] % 2 == 0', True, False)
    """

    condition: Expression
    reason: str

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether inputs of these shapes satisfy it; ``shapes`` has the input's name for key."""
        try:
            return bool(evaluate(self.condition, shapes))
        except ZeroDivisionError:
            return False

    def inputs(self) -> list[str]:
        """The inputs whose sizes it is about, each once."""
        return list(dict.fromkeys(name for name, _ in sizes_in(self.condition)))

    def __str__(self) -> str:
        return written(self.condition)


def evaluate(expression: Expression, shapes: Mapping[str, Sequence[int]]) -> Any:
    """The value of an expression for inputs of these shapes."""
    if isinstance(expression, int):
        return expression
    kind, *args = expression
    if kind == "size":
        return shapes[args[0]][args[1]]
    values = [evaluate(arg, shapes) for arg in args]
    if kind in _OF_MANY:
        return _OF_MANY[kind](values)
    if kind == "not":
        return not values[0]
    return _OF_TWO[kind](*values)


def sizes_in(expression: Expression) -> Iterator[tuple[str, int]]:
    """Input and axis of each size in an expression."""
    if isinstance(expression, int):
        return
    kind, *args = expression
    if kind == "size":
        yield args[0], args[1]
    else:
        for arg in args:
            yield from sizes_in(arg)


def written(expression: Expression) -> str:
    """An expression as Python writes it."""
    if isinstance(expression, int):
        return str(expression)
    kind, *args = expression
    if kind == "size":
        return f"{args[0]}.shape[{args[1]}]"
    if kind in ("max", "min"):
        return f"{kind}({', '.join(map(written, args))})"
    if kind == "not":
        return f"not {_in_brackets(args[0], kind)}"
    return f" {kind} ".join(_in_brackets(arg, kind) for arg in args)


def _in_brackets(expression: Expression, around: str) -> str:
    """An argument of the operator ``around``, in brackets where it is an operation itself."""
    simple = isinstance(expression, int) or expression[0] in ("size", "max", "min")
    arithmetic = not simple and expression[0] in ("+", "*", "//", "%")
    return (
        written(expression)
        if simple or (arithmetic and around in _COMPARISONS)
        else f"({written(expression)})"
    )


def checked(expression: Any, ranks: Mapping[str, int], depth: int = 0) -> Expression:
    """An expression that came from anywhere, as tuples.

    Args:
        expression: lists or tuples.
        ranks: the number of dimensions of each input.
        depth: of expressions around it.

    Raises:
        ValueError: it is none.
    """
    if type(expression) is int and abs(expression) < _LARGEST:
        return expression
    if not isinstance(expression, list | tuple) or not expression or depth > _DEEPEST:
        raise ValueError("a guard is not an expression of sizes")
    kind, *args = expression
    if kind == "size":
        name, axis = args
        if not (isinstance(name, str) and type(axis) is int and 0 <= axis < ranks.get(name, 0)):
            raise ValueError(f"a guard is about {args}, not the size of an input")
        return (kind, name, axis)
    counts = {"not": (1,)} | dict.fromkeys(_OF_TWO, (2,))
    if not isinstance(kind, str) or kind not in (*counts, *_OF_MANY):
        raise ValueError(f"{kind!r} is not an operator on sizes")
    if len(args) not in counts.get(kind, range(1, 100)):
        raise ValueError(f"{kind!r} does not take {len(args)} arguments")
    return (kind, *(checked(arg, ranks, depth + 1) for arg in args))
