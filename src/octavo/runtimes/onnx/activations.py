"""Activation functions."""

from __future__ import annotations

from typing import Any

from octavo.errors import ExportError
from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.onnx import quantization
from octavo.runtimes.onnx.elementwise import as_result, unary
from octavo.runtimes.onnx.writer import MICROSOFT, Converter, Writer

_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "selu": "Selu",
}


def _with_factors(kind: str, names: dict[str, str], **fixed: Any) -> Converter:
    """An operator of ONNX whose attributes are arguments of torch's: attribute -> argument."""

    def convert(w: Writer, node: Node) -> Any:
        given = arguments(node)
        factors: dict[str, Any] = {
            attribute: float(given[name]) for attribute, name in names.items()
        }
        return w.op(kind, w.read(node.args[0]), **factors, **fixed)

    return convert


def _hardtanh(w: Writer, node: Node) -> Any:
    given = arguments(node)
    bounds = (as_result(w, node, given[name]) for name in ("min_val", "max_val"))
    return w.op("Clip", w.read(node.args[0]), *bounds)


def _gelu(w: Writer, node: Node) -> Any:
    return w.op("Gelu", w.read(node.args[0]), approximate=arguments(node)["approximate"])


def _silu(w: Writer, node: Node) -> Any:
    x = w.read(node.args[0])
    if w.dialect.quick_gelu and w.meta(node).dtype == "float32":
        return w.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)
    return w.op("Mul", x, w.op("Sigmoid", x))


def _hardsigmoid(w: Writer, node: Node) -> Any:
    x = w.read(node.args[0])
    if not w.dialect.clipped_hardsigmoid:
        return w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    zero, three, six = (w.constant(number, w.meta(node).dtype) for number in (0, 3, 6))
    return w.op("Div", w.op("Clip", w.op("Add", x, three), zero, six), six)


def _glu(w: Writer, node: Node) -> Any:
    axis = int(arguments(node)["dim"])
    a, b = w.ops("Split", w.read(node.args[0]), outputs=2, axis=axis, num_outputs=2)
    return w.op("Mul", a, w.op("Sigmoid", b))


def _elu(w: Writer, node: Node) -> Any:
    given = arguments(node)
    if (given["scale"], given["input_scale"]) != (1, 1):
        raise ExportError(
            f"{node.name}: {node.op} with scales of its own has no ONNX form; multiply before and "
            "after it"
        )
    return w.op("Elu", w.read(node.args[0]), alpha=float(given["alpha"]))


def _softplus(w: Writer, node: Node) -> Any:
    beta, x = float(arguments(node)["beta"]), w.read(node.args[0])
    if beta == 1:
        return w.op("Softplus", x)
    factor = w.constant(beta, w.meta(node).dtype)
    return w.op("Div", w.op("Softplus", w.op("Mul", x, factor)), factor)


def _log_sigmoid(w: Writer, node: Node) -> Any:
    return w.op("Neg", w.op("Softplus", w.op("Neg", w.read(node.args[0]))))


def _prelu(w: Writer, node: Node) -> Any:
    """Slopes belong to axis 1; ONNX broadcasts from the last."""
    x, slope = node.args[:2]
    value, axes = w.read(slope), range(1, w.rank(x) - 1)
    if w.meta(slope).shape != (1,) and axes:
        value = w.op("Unsqueeze", value, w.ints(axes))
    return w.op("PRelu", w.read(x), value)


def _threshold(w: Writer, node: Node) -> Any:
    x, threshold, value = node.args
    dtype = w.meta(node).dtype
    above = w.op("Greater", w.read(x), w.constant(threshold, dtype))
    return w.op("Where", above, w.read(x), w.constant(value, dtype))


def _softmax(w: Writer, node: Node) -> Any:
    axis = int(arguments(node)["dim"])
    made = w.op("Softmax", as_result(w, node, node.args[0]), axis=axis)
    scale, size = quantization.scale_of_result(w, node), w.meta(node).shape[axis]
    if scale is None or (scale >= 1 / 256 and size is not None and size > 1):
        return made
    # ONNX Runtime's softmax on integers is made for results up to 1, and gives 0 for a value that
    # is alone; the maximum, which changes nothing, keeps it in float.
    return w.op("Max", made, w.constant(0.0, w.meta(node).dtype))


def _log_softmax(w: Writer, node: Node) -> Any:
    return w.op("LogSoftmax", as_result(w, node, node.args[0]), axis=int(arguments(node)["dim"]))


CONVERTERS: dict[str, Converter] = {
    **{name: unary(kind) for name, kind in _UNARY.items()},
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "leaky_relu": _with_factors("LeakyRelu", {"alpha": "negative_slope"}),
    "celu": _with_factors("Celu", {"alpha": "alpha"}),
    "softshrink": _with_factors("Shrink", {"lambd": "lambd", "bias": "lambd"}),
    "hardshrink": _with_factors("Shrink", {"lambd": "lambd"}),
    "gelu": _gelu,
    "silu": _silu,
    "glu": _glu,
    "elu": _elu,
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "prelu": _prelu,
    "threshold": _threshold,
    **dict.fromkeys(["softmax", "_softmax"], _softmax),
    **dict.fromkeys(["log_softmax", "_log_softmax"], _log_softmax),
}
