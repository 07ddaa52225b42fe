"""Operators that work on each value by itself.

Tested in tests/runtimes/litert/test_elementwise.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.runtimes.litert.flatbuffer import TYPES
from octavo.runtimes.litert.rounding import CLIPS
from octavo.runtimes.litert.values import FLOAT, Form, Value, channels_last
from octavo.runtimes.litert.writer import Converter, Writer

# Operators of two tensors, and whether they apply an activation.
_BINARY = {
    "add": ("ADD", "AddOptions", True),
    "sub": ("SUB", "SubOptions", True),
    "mul": ("MUL", "MulOptions", True),
    "div": ("DIV", "DivOptions", True),
    "maximum": ("MAXIMUM", "MaximumMinimumOptions", False),
    "minimum": ("MINIMUM", "MaximumMinimumOptions", False),
    "pow": ("POW", "PowOptions", False),
    "floor_divide": ("FLOOR_DIV", "FloorDivOptions", False),
    "remainder": ("FLOOR_MOD", "FloorModOptions", False),
}
_COMPARISONS = {
    "eq": ("EQUAL", "EqualOptions"),
    "ne": ("NOT_EQUAL", "NotEqualOptions"),
    "lt": ("LESS", "LessOptions"),
    "le": ("LESS_EQUAL", "LessEqualOptions"),
    "gt": ("GREATER", "GreaterOptions"),
    "ge": ("GREATER_EQUAL", "GreaterEqualOptions"),
    "logical_and": ("LOGICAL_AND", "LogicalAndOptions"),
    "logical_or": ("LOGICAL_OR", "LogicalOrOptions"),
    "bitwise_and": ("LOGICAL_AND", "LogicalAndOptions"),
    "bitwise_or": ("LOGICAL_OR", "LogicalOrOptions"),
}
_UNARY = {
    "relu": ("RELU", None),
    "relu6": ("RELU6", None),
    "sigmoid": ("LOGISTIC", None),
    "tanh": ("TANH", None),
    "hardswish": ("HARD_SWISH", "HardSwishOptions"),
    "elu": ("ELU", None),
    "exp": ("EXP", "ExpOptions"),
    "log": ("LOG", None),
    "sqrt": ("SQRT", None),
    "rsqrt": ("RSQRT", None),
    "sin": ("SIN", None),
    "cos": ("COS", "CosOptions"),
    "abs": ("ABS", "AbsOptions"),
    "neg": ("NEG", "NegOptions"),
    "floor": ("FLOOR", None),
    "ceil": ("CEIL", None),
    "round": ("ROUND", None),
    "sign": ("SIGN", "SignOptions"),
    "square": ("SQUARE", "SquareOptions"),
    "logical_not": ("LOGICAL_NOT", "LogicalNotOptions"),
    "bitwise_not": ("LOGICAL_NOT", "LogicalNotOptions"),
}


def operands(w: Writer, node: Node, *args: Any, dtype: str | None = None) -> list[Value]:
    """Tensors and numbers as an operator reads them together, with their axes in one order."""
    rank, last = len(w.shape(node)), _is_any_last(w, node, args)
    return [_operand(w, arg, rank, last, dtype or w.meta(node).dtype) for arg in args]


def _is_any_last(w: Writer, node: Node, args: Sequence[Any]) -> bool:
    """Whether one of an operator's tensors has its channels last, so that all shall."""
    rank = len(w.shape(node))
    return rank > 2 and any(
        isinstance(arg, Ref) and len(w.shape(arg)) == rank and w.is_last(arg) for arg in args
    )


def _operand(w: Writer, arg: Any, rank: int, last: bool, dtype: str) -> Value:
    if not isinstance(arg, Ref):
        return w.constant(np.asarray(arg), Form(dtype), "number")
    constant = w.graph.constant(arg)
    if constant is not None:
        array = constant.detach().numpy()
        if last:
            array = array.reshape([1] * (rank - array.ndim) + list(array.shape))
            array = array.transpose(channels_last(range(rank)))
        return w.constant(array, Form(dtype), arg.name)
    value = w.read(arg, last=last if len(w.shape(arg)) == rank else False)
    if last and len(value.shape) < rank:
        value = w.reshaped(value, [1] * (rank - len(value.shape)) + list(value.shape))
        value = w.laid(value, last=True)
    return cast(w, value, dtype)


def cast(w: Writer, value: Value, dtype: str) -> Value:
    """A value in another type; integers with a scale stay what they are."""
    if value.form.dtype == dtype or value.form.quantization is not None:
        return value
    if dtype not in TYPES:
        raise ExportError(f"it computes in {dtype}, which LiteRT does not")
    inside, outside = TYPES[value.form.dtype], TYPES[dtype]
    settings = {"inDataType": inside, "outDataType": outside}
    return w.op(
        "CAST", [value], value.shape, Form(dtype), "CastOptions", last=value.last, **settings
    )


def computed(
    w: Writer, node: Node, kind: str, inputs: list[Value], options: str | None, **settings: Any
) -> Value:
    """An operator whose result has the shape of the node's."""
    shape = w.shape(node)
    last = any(value.last for value in inputs)
    sizes = channels_last(shape) if last else shape
    return w.op(kind, list(inputs), sizes, w.form(node), options, last=last, **settings)


def _binary(kind: str, options: str, activates: bool) -> Converter:
    def write(w: Writer, node: Node) -> Value:
        alpha = arguments(node).get("alpha", 1)
        if alpha != 1 or arguments(node).get("rounding_mode") is not None:
            raise ExportError(f"its alpha or rounding_mode is another than LiteRT's {kind} has")
        inputs = operands(w, node, *node.args[:2])
        more = {"fusedActivationFunction": w.activation()} if activates else {}
        return computed(w, node, kind, inputs, options, **more)

    return write


def _comparison(kind: str, options: str) -> Converter:
    def write(w: Writer, node: Node) -> Value:
        dtypes = [w.meta(arg).dtype for arg in node.args[:2] if isinstance(arg, Ref)]
        dtype = "float32" if "float32" in dtypes else dtypes[0]
        return computed(w, node, kind, operands(w, node, *node.args[:2], dtype=dtype), options)

    return write


def unary(w: Writer, node: Node, kind: str, options: str | None, **settings: Any) -> Value:
    """An operator of one tensor, whose result is like it."""
    (x,) = operands(w, node, node.args[0])
    return computed(w, node, kind, [x], options, **settings)


def _unary(kind: str, options: str | None) -> Converter:
    return lambda w, node: unary(w, node, kind, options)


def _clip(w: Writer, node: Node) -> Value:
    """What cuts values to a range, alone."""
    low, high = CLIPS[node.short_op](node)
    return _between(w, node, low, high)


def _clamp(w: Writer, node: Node) -> Value:
    given = arguments(node)
    return _between(w, node, given.get("min"), given.get("max"))


def _between(w: Writer, node: Node, low: Any, high: Any) -> Value:
    if isinstance(low, Ref) or isinstance(high, Ref):
        raise ExportError("its bounds are tensors")
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    known = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    if ends in known:
        return unary(w, node, known[ends], None)
    if w.rounding is not None:
        w.rounding = w.rounding.within(*ends)
        return w.requantized(w.read(node.args[0]), w.form(node))
    (x,) = operands(w, node, node.args[0])
    for kind, end in zip(("MAXIMUM", "MINIMUM"), ends, strict=True):
        if not math.isinf(end):
            bound = w.constant(np.asarray(end), Form(w.meta(node).dtype), "bound")
            x = computed(w, node, kind, [x, bound], "MaximumMinimumOptions")
    return x


def _leaky_relu(w: Writer, node: Node) -> Value:
    slope = float(arguments(node)["negative_slope"])
    return unary(w, node, "LEAKY_RELU", "LeakyReluOptions", alpha=slope)


def _gelu(w: Writer, node: Node) -> Value:
    approximate = arguments(node)["approximate"] == "tanh"
    return unary(w, node, "GELU", "GeluOptions", approximate=approximate)


def _elu(w: Writer, node: Node) -> Value:
    given = arguments(node)
    if (given["alpha"], given["scale"], given["input_scale"]) != (1, 1, 1):
        raise ExportError(f"its alpha is {given['alpha']}; LiteRT's ELU has 1")
    return unary(w, node, "ELU", None)


def _silu(w: Writer, node: Node) -> Value:
    (x,) = operands(w, node, node.args[0])
    gate = computed(w, node, "LOGISTIC", [x], None)
    return computed(w, node, "MUL", [x, gate], "MulOptions")


def _softplus(w: Writer, node: Node) -> Value:
    (x,), beta = operands(w, node, node.args[0]), float(arguments(node)["beta"])
    if beta == 1:
        return _raised_exponent(w, x)
    scale, back = (w.constant(np.float32(n), FLOAT, "beta") for n in (beta, 1 / beta))
    return _float(w, "MUL", _raised_exponent(w, _float(w, "MUL", x, scale)), back)


def _mish(w: Writer, node: Node) -> Value:
    (x,) = operands(w, node, node.args[0])
    return _float(w, "MUL", x, _float(w, "TANH", _raised_exponent(w, x)))


def _log_sigmoid(w: Writer, node: Node) -> Value:
    (x,) = operands(w, node, node.args[0])
    return _float(w, "NEG", _raised_exponent(w, _float(w, "NEG", x)))


def _raised_exponent(w: Writer, x: Value) -> Value:
    """``log(1 + exp(x))``, of a number below 1 plus ``max(x, 0)``: large ones stay finite."""
    small = _float(w, "EXP", _float(w, "NEG", _float(w, "ABS", x)))
    one = w.constant(np.float32(1), FLOAT, "one")
    return _float(w, "ADD", _float(w, "RELU", x), _float(w, "LOG", _float(w, "ADD", small, one)))


_OPTIONS = {
    "ABS": "AbsOptions",
    "ADD": "AddOptions",
    "EXP": "ExpOptions",
    "MUL": "MulOptions",
    "NEG": "NegOptions",
}


def _float(w: Writer, kind: str, x: Value, *others: Value) -> Value:
    """An operator in float, whose result is like the first that it reads."""
    return w.op(kind, [x, *others], x.shape, FLOAT, _OPTIONS.get(kind), last=x.last)


def _softmax(w: Writer, node: Node) -> Value:
    given = arguments(node)
    x, rank = w.read(node.args[0]), len(w.shape(node))
    axis, shape = int(given["dim"]) % rank, x.shape
    place = x.axis(axis)
    if place != rank - 1:
        order = [*(a for a in range(rank) if a != place), place]
        moved = w.transposed(x, order)
        made = w.op("SOFTMAX", [moved], moved.shape, w.form(node), "SoftmaxOptions", beta=1.0)
        back = [order.index(a) for a in range(rank)]
        return w.transposed(made, back, x.last)
    return w.op("SOFTMAX", [x], shape, w.form(node), "SoftmaxOptions", last=x.last, beta=1.0)


def _log_softmax(w: Writer, node: Node) -> Value:
    dim, rank = int(arguments(node)["dim"]), len(w.shape(node))
    order = [*(axis for axis in range(rank) if axis != dim % rank), dim % rank]
    x = w.transposed(w.read_floats(node.args[0], last=False), order)
    made = w.op("LOG_SOFTMAX", [x], x.shape, w.form(node), "LogSoftmaxOptions")
    return w.transposed(made, [order.index(axis) for axis in range(rank)])


def _prelu(w: Writer, node: Node) -> Value:
    slope = w.tensor_of(node.args[1])
    if slope is None:
        raise ExportError("its slope is computed by the model")
    (x,) = operands(w, node, node.args[0])
    array = slope.detach().numpy()
    if array.size > 1 and not x.last:
        array = array.reshape([-1] + [1] * (len(x.shape) - 2))
    return computed(w, node, "PRELU", [x, w.constant(array, Form("float32"), "slope")], None)


def _rsub(w: Writer, node: Node) -> Value:
    if arguments(node).get("alpha", 1) != 1:
        raise ExportError("its alpha is another than 1")
    inputs = operands(w, node, node.args[1], node.args[0])
    return computed(w, node, "SUB", inputs, "SubOptions")


def _reciprocal(w: Writer, node: Node) -> Value:
    inputs = operands(w, node, 1.0, node.args[0])
    return computed(w, node, "DIV", inputs, "DivOptions")


def _to(w: Writer, node: Node) -> Value:
    value = w.read(node.args[0])
    return value if value.form.quantization else cast(w, value, w.meta(node).dtype)


def _where(w: Writer, node: Node) -> Value:
    return _selected(w, node, *node.args[:3])


def _masked_fill(w: Writer, node: Node) -> Value:
    x, condition, number = node.args[:3]
    return _selected(w, node, condition, _finite(number), x)


def _selected(w: Writer, node: Node, condition: Any, a: Any, b: Any) -> Value:
    """Where a mask is true of one, elsewhere of the other; all with their axes in one order."""
    rank, last = len(w.shape(node)), _is_any_last(w, node, (condition, a, b))
    dtype = w.meta(node).dtype
    rows = ((condition, "bool"), (a, dtype), (b, dtype))
    inputs = [_operand(w, arg, rank, last, of) for arg, of in rows]
    return computed(w, node, "SELECT_V2", inputs, "SelectV2Options")


def _finite(number: Any) -> Any:
    return number if isinstance(number, Ref) else max(number, float(np.finfo(np.float32).min))


CONVERTERS: dict[str, Converter] = {
    **{name: _binary(*row) for name, row in _BINARY.items()},
    **{name: _comparison(*row) for name, row in _COMPARISONS.items()},
    **{name: _unary(*row) for name, row in _UNARY.items()},
    "hardtanh": _clip,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "clip": _clamp,
    "leaky_relu": _leaky_relu,
    "gelu": _gelu,
    "elu": _elu,
    "silu": _silu,
    "softplus": _softplus,
    "mish": _mish,
    "log_sigmoid": _log_sigmoid,
    "softmax": _softmax,
    "_softmax": _softmax,
    "log_softmax": _log_softmax,
    "prelu": _prelu,
    "rsub": _rsub,
    "reciprocal": _reciprocal,
    **dict.fromkeys(["to", "_to_copy", "type_as"], _to),
    "where": _where,
    "masked_fill": _masked_fill,
}
