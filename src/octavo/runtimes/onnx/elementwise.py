"""Arithmetic, comparisons, logic and casts: operators that work on each value by itself."""

from __future__ import annotations

import math
from typing import Any

import torch

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.runtimes.onnx.writer import Converter, Writer, dtype_name

# One input, computed in the result's dtype: functions of integers are float.
_UNARY = {
    "neg": "Neg",
    "negative": "Neg",
    "abs": "Abs",
    "absolute": "Abs",
    "sign": "Sign",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "erf": "Erf",
    "floor": "Floor",
    "ceil": "Ceil",
}
# Two inputs, computed in the result's dtype.
_ARITHMETIC = {
    "mul": "Mul",
    "multiply": "Mul",
    "maximum": "Max",
    "minimum": "Min",
}
# Two inputs of one dtype, a boolean result.
_COMPARISONS = {
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
_LOGIC = {
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "bitwise_and": "And",
    "bitwise_or": "Or",
    "bitwise_xor": "Xor",
}
# What ONNX Runtime has no `Where` for is picked in another dtype.
_PICKED_AS = {"bool": "uint8", "int8": "int32", "int16": "int32"}


def as_result(w: Writer, node: Node, arg: Any) -> str:
    """An operand in the dtype of the result."""
    return w.read_as(arg, w.meta(node).dtype)


def unary(kind: str) -> Converter:
    """One operator of ONNX, in the dtype of the result."""
    return lambda w, node: w.op(kind, as_result(w, node, node.args[0]))


def picked(w: Writer, condition: Any, a: Any, b: Any, dtype: str) -> str:
    """Where the condition holds values of ``a``, else of ``b``."""
    wide = _PICKED_AS.get(dtype, dtype)
    chosen = w.op("Where", w.read_as(condition, "bool"), w.read_as(a, wide), w.read_as(b, wide))
    return w.cast(chosen, wide, dtype)


def floor_divided(w: Writer, a: str, b: str) -> str:
    """A quotient of integers rounded down, where ONNX rounds towards zero.

    ``(a - a mod b) / b``: ONNX's remainder has the sign of the divisor, as torch's.
    """
    return w.op("Div", w.op("Sub", a, w.op("Mod", a, b)), b)


def _binary(kind: str) -> Converter:
    return lambda w, node: w.op(kind, *_operands(w, node))


def _operands(w: Writer, node: Node) -> list[str]:
    return [as_result(w, node, arg) for arg in node.args[:2]]


def _div(w: Writer, node: Node) -> Any:
    mode = arguments(node).get("rounding_mode")
    if mode is None:
        return w.op("Div", *_operands(w, node))
    return _QUOTIENTS[mode](w, node)


def _floor_divide(w: Writer, node: Node) -> Any:
    a, b = _operands(w, node)
    if _is_float(w, node):
        return w.op("Floor", w.op("Div", a, b))
    return floor_divided(w, a, b)


def _trunc_divide(w: Writer, node: Node) -> Any:
    quotient = w.op("Div", *_operands(w, node))
    return _truncated(w, quotient) if _is_float(w, node) else quotient


_QUOTIENTS = {"floor": _floor_divide, "trunc": _trunc_divide}


def _is_float(w: Writer, node: Node) -> bool:
    return "float" in w.meta(node).dtype


def _remainder(w: Writer, node: Node) -> Any:
    """With the sign of the divisor; ONNX knows that for integers alone."""
    a, b = _operands(w, node)
    if _is_float(w, node):
        return w.op("Sub", a, w.op("Mul", w.op("Floor", w.op("Div", a, b)), b))
    return w.op("Mod", a, b)


def _fmod(w: Writer, node: Node) -> Any:
    return w.op("Mod", *_operands(w, node), fmod=1)


def _add(w: Writer, node: Node) -> Any:
    a, b = _operands(w, node)
    if w.meta(node).dtype == "bool":
        return w.op("Or", a, b)
    return w.op("Add", a, _times(w, node, b, arguments(node)["alpha"]))


def _sub(w: Writer, node: Node) -> Any:
    a, b = _operands(w, node)
    return w.op("Sub", a, _times(w, node, b, arguments(node)["alpha"]))


def _rsub(w: Writer, node: Node) -> Any:
    a, b = _operands(w, node)
    return w.op("Sub", b, _times(w, node, a, arguments(node)["alpha"]))


def _times(w: Writer, node: Node, value: str, factor: Any) -> str:
    """A value times the number that an operator takes besides."""
    if factor == 1:
        return value
    return w.op("Mul", value, w.constant(factor, w.meta(node).dtype))


def _addcmul(w: Writer, node: Node) -> Any:
    x, a, b = (as_result(w, node, arg) for arg in node.args[:3])
    return w.op("Add", x, _times(w, node, w.op("Mul", a, b), arguments(node)["value"]))


def _addcdiv(w: Writer, node: Node) -> Any:
    x, a, b = (as_result(w, node, arg) for arg in node.args[:3])
    return w.op("Add", x, _times(w, node, w.op("Div", a, b), arguments(node)["value"]))


def _lerp(w: Writer, node: Node) -> Any:
    start, end, weight = (as_result(w, node, arg) for arg in node.args[:3])
    return w.op("Add", start, w.op("Mul", w.op("Sub", end, start), weight))


def _rsqrt(w: Writer, node: Node) -> Any:
    return w.op("Reciprocal", w.op("Sqrt", as_result(w, node, node.args[0])))


def _square(w: Writer, node: Node) -> Any:
    x = w.read(node.args[0])
    return w.op("Mul", x, x)


def _pow(w: Writer, node: Node) -> Any:
    base, exponent = node.args[:2]
    x = as_result(w, node, base)
    if exponent == 2:  # what runtimes know as part of a normalization
        return w.op("Mul", x, x)
    if exponent == 0.5:
        return w.op("Sqrt", x)
    return w.op("Pow", x, as_result(w, node, exponent))


def _exp2(w: Writer, node: Node) -> Any:
    two = w.constant(2, w.meta(node).dtype)
    return w.op("Pow", two, as_result(w, node, node.args[0]))


def _of_logarithm(base: float) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        x = w.op("Log", as_result(w, node, node.args[0]))
        return w.op("Div", x, w.constant(math.log(base), w.meta(node).dtype))

    return convert


def _log1p(w: Writer, node: Node) -> Any:
    one = w.constant(1, w.meta(node).dtype)
    return w.op("Log", w.op("Add", as_result(w, node, node.args[0]), one))


def _expm1(w: Writer, node: Node) -> Any:
    one = w.constant(1, w.meta(node).dtype)
    return w.op("Sub", w.op("Exp", as_result(w, node, node.args[0])), one)


def _erfc(w: Writer, node: Node) -> Any:
    one = w.constant(1, w.meta(node).dtype)
    return w.op("Sub", one, w.op("Erf", as_result(w, node, node.args[0])))


def _round(w: Writer, node: Node) -> Any:
    """Halves go to the even neighbour, as in torch."""
    if arguments(node).get("decimals"):
        raise ExportError(f"{node.name}: {node.op} has no ONNX form; scale before and after round")
    return w.op("Round", w.read(node.args[0]))


def _trunc(w: Writer, node: Node) -> Any:
    return _truncated(w, w.read(node.args[0]))


def _frac(w: Writer, node: Node) -> Any:
    x = w.read(node.args[0])
    return w.op("Sub", x, _truncated(w, x))


def _truncated(w: Writer, x: str) -> str:
    return w.op("Mul", w.op("Sign", x), w.op("Floor", w.op("Abs", x)))


def _clamp(w: Writer, node: Node) -> Any:
    given = arguments(node)
    low, high, x = given.get("min"), given.get("max"), as_result(w, node, node.args[0])
    if w.is_tensor(low) or w.is_tensor(high):  # ONNX clips to numbers alone
        x = x if low is None else w.op("Max", x, as_result(w, node, low))
        return x if high is None else w.op("Min", x, as_result(w, node, high))
    return w.op("Clip", x, *("" if b is None else as_result(w, node, b) for b in (low, high)))


def _comparison(kind: str) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        dtype = _compared_in(w, node.args[:2])
        if dtype == "bool" and kind != "Equal":
            dtype = "int64"
        return w.op(kind, *(w.read_as(arg, dtype) for arg in node.args[:2]))

    return convert


def _compared_in(w: Writer, operands: Any) -> str:
    """The dtype that torch compares two operands in; all integers as int64."""
    dtype = torch.result_type(*(_example(w, operand) for operand in operands))
    if dtype.is_floating_point or dtype == torch.bool:
        return dtype_name(dtype)
    return "int64"


def _example(w: Writer, operand: Any) -> Any:
    """A tensor of an operand's dtype and rank, or a number."""
    if not isinstance(operand, Ref):
        return operand
    if not w.is_tensor(operand):
        return 0  # a size
    dtype = getattr(torch, w.meta(operand).dtype)
    return torch.empty([1] * w.rank(operand), dtype=dtype, device="meta")


def _not_equal(w: Writer, node: Node) -> Any:
    return w.op("Not", _comparison("Equal")(w, node))


def _logic(kind: str) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        prefix = "" if w.meta(node).dtype == "bool" else "Bitwise"
        return w.op(prefix + kind, *_operands(w, node))

    return convert


def _logical_not(w: Writer, node: Node) -> Any:
    return w.op("Not", w.read_as(node.args[0], "bool"))


def _bitwise_not(w: Writer, node: Node) -> Any:
    kind = "Not" if w.meta(node).dtype == "bool" else "BitwiseNot"
    return w.op(kind, w.read(node.args[0]))


def _predicate(kind: str) -> Converter:
    return lambda w, node: w.op(kind, w.read_as(node.args[0], "float32"))


def _isfinite(w: Writer, node: Node) -> Any:
    x = w.read_as(node.args[0], "float32")
    return w.op("Not", w.op("Or", w.op("IsNaN", x), w.op("IsInf", x)))


def _where(w: Writer, node: Node) -> Any:
    if len(node.args) < 3:
        raise ExportError(
            f"{node.name}: {node.op} gives as many values as its condition holds, which is not "
            "known; use torch.where with three arguments"
        )
    condition, a, b = node.args
    return picked(w, condition, a, b, w.meta(node).dtype)


def _masked_fill(w: Writer, node: Node) -> Any:
    x, mask, value = node.args[:3]
    return picked(w, mask, value, x, w.meta(node).dtype)


def _cast(w: Writer, node: Node) -> Any:
    return as_result(w, node, node.args[0])


CONVERTERS: dict[str, Converter] = {
    **{name: unary(kind) for name, kind in _UNARY.items()},
    **{name: _binary(kind) for name, kind in _ARITHMETIC.items()},
    **{name: _comparison(kind) for name, kind in _COMPARISONS.items()},
    **{name: _logic(kind) for name, kind in _LOGIC.items()},
    "ne": _not_equal,
    "logical_not": _logical_not,
    "bitwise_not": _bitwise_not,
    "isnan": _predicate("IsNaN"),
    "isinf": _predicate("IsInf"),
    "isfinite": _isfinite,
    "add": _add,
    **dict.fromkeys(["sub", "subtract"], _sub),
    "rsub": _rsub,
    **dict.fromkeys(["div", "divide", "true_divide"], _div),
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "fmod": _fmod,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    **dict.fromkeys(["clamp", "clamp_min", "clamp_max", "clip"], _clamp),
    "rsqrt": _rsqrt,
    "square": _square,
    "pow": _pow,
    "exp2": _exp2,
    "log2": _of_logarithm(2),
    "log10": _of_logarithm(10),
    "log1p": _log1p,
    "expm1": _expm1,
    "erfc": _erfc,
    "round": _round,
    "trunc": _trunc,
    "frac": _frac,
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(["to", "_to_copy", "type_as"], _cast),
}
