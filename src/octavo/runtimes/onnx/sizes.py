"""Sizes and arithmetic on them: a size that is computed is a vector of one int64.

Tested in tests/runtimes/onnx/test_zoo.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.graph.graph import Node, Ref
from octavo.graph.qdq import rounding_behind
from octavo.runtimes.onnx.elementwise import floor_divided
from octavo.runtimes.onnx.writer import Converter, Writer

TO_THE_END = 2**63 - 1
_ARITHMETIC = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "mod": "Mod",
    "sym_max": "Max",
    "sym_min": "Min",
}


def axis_of(w: Writer, ref: Ref, axis: int) -> int:
    """An axis of a tensor counted from its first one."""
    return int(axis) % max(1, w.rank(ref))


def size(w: Writer, arg: Any) -> str:
    """A size as a vector of one: computed, or a number."""
    if not isinstance(arg, Ref):
        return w.ints([arg])
    value = w.read(arg)
    if w.is_tensor(arg):  # a number that a tensor holds
        value = w.op("Reshape", w.cast(value, w.meta(arg).dtype, "int64"), w.ints([1]))
    return value


def sizes(w: Writer, args: Sequence[Any]) -> str:
    """A shape of sizes and numbers."""
    if not any(isinstance(arg, Ref) for arg in args):
        return w.ints(args)
    return w.op("Concat", *(size(w, arg) for arg in args), axis=0)


def shape(w: Writer, ref: Ref, start: int = 0, end: int | None = None) -> str:
    """The sizes that a tensor has when the model runs, of some of its axes; "" of none."""
    if start >= (w.rank(ref) if end is None else end):
        return ""
    value: str = w.op("Shape", w.read(ref), start=start or None, end=end)
    return value


def joined(w: Writer, *parts: str | Sequence[int]) -> str:
    """A shape of parts, computed or known."""
    values = [part if isinstance(part, str) else w.ints(part) for part in parts if part]
    whole: str = values[0] if len(values) == 1 else w.op("Concat", *values, axis=0)
    return whole


def scalar(w: Writer, arg: Any, dtype: str) -> str:
    """A number without dimensions."""
    if not isinstance(arg, Ref):
        return w.constant(arg, dtype)
    held = w.meta(arg).dtype if w.is_tensor(arg) else "int64"
    return w.cast(w.op("Reshape", w.read(arg), w.ints([])), held, dtype)


def length_of(w: Writer, value: str, axis: int) -> str:
    """The size of a value's axis, counted from the first one, as a vector of one."""
    return w.op("Shape", value, start=axis, end=axis + 1)


def of_rows(w: Writer, x: Any, width: int) -> str:
    """The sizes of a tensor with another last one."""
    known = [-1 if size is None else size for size in w.meta(x).shape[:-1]]
    if known.count(-1) <= 1:
        return w.ints([*known, width])
    rounding = rounding_behind(w.graph, x)  # that nothing is read back for its sizes alone
    value = w.read(x if rounding is None else Ref(rounding.name))
    key = f"{value}.sizes of rows"
    if key not in w.values:
        w.values[key] = w.op("Shape", value, end=-1)
    return w.op("Concat", w.values[key], w.ints([width]), axis=0)


def _sym_size(w: Writer, node: Node) -> Any:
    x, axis = node.args
    return length_of(w, w.read(x), axis_of(w, x, axis))


def _sym_numel(w: Writer, node: Node) -> Any:
    return w.op("Reshape", w.op("Size", w.read(node.args[0])), w.ints([1]))


def _arithmetic(kind: str) -> Converter:
    return lambda w, node: w.op(kind, *(size(w, arg) for arg in node.args))


def _floordiv(w: Writer, node: Node) -> Any:
    """Also of negative numbers: ``-(-n // k)`` is a quotient rounded up."""
    return floor_divided(w, *(size(w, arg) for arg in node.args))


CONVERTERS: dict[str, Converter] = {"sym_size": _sym_size, "sym_numel": _sym_numel}

PYTHON: dict[str, Converter] = {
    **{name: _arithmetic(kind) for name, kind in _ARITHMETIC.items()},
    "neg": _arithmetic("Neg"),
    "floordiv": _floordiv,
}
