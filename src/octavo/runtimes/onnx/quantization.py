"""Quantize, dequantize, and the layers that read integers: what makes the model one of int8.

Tested in tests/runtimes/onnx/test_zoo.py and tests/runtimes/test_contract.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import (
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    DYNAMIC,
    QUANTIZE,
    QuantizedWeight,
    rounding_behind,
    weight_behind,
)
from octavo.numerics import octavo_operators
from octavo.quantization.targets import FROM_ZERO, ROLES, SHARED, WEIGHTED
from octavo.runtimes.onnx import clips
from octavo.runtimes.onnx.writer import Writer, dtype_name, fenced, kept_apart

_RANGES = {"uint8": (0, 255), "int8": (-128, 127), "int16": (-(2**15), 2**15 - 1)}
_PLAIN_ROUNDING = (0, 255, False, False)  # of fake_quantize_dynamic: uint8, one scale for all
_INT32 = 2**31 - 1
_MOST_STEPS = 256
_PASSED = frozenset("mul div neg add sub relu hardtanh leaky_relu prelu".split())


def _quantize(w: Writer, node: Node) -> Any:
    x, scale, zero_point, qmin, qmax, dtype = node.args
    name = dtype_name(dtype)
    padded = w.values.get(f"{x.name}.integers", ())
    if padded[1:] == (scale, zero_point):
        return padded[0]
    params = w.constant(scale, "float32"), w.constant(zero_point, name)
    clipped = clips.behind_rounding(w, node) if w.dialect.integer_clips else None
    value = w.read(x if clipped is None else clipped[0])
    if w.dialect.fenced_summands and _is_summand(w, node):
        value = w.op("LeakyRelu", value, alpha=1.0)
    if _is_magnified_average(w, node):
        value = kept_apart(w, value)
    # ONNX knows the dtype's own range alone.
    if clipped is not None and clipped[1] != _RANGES[name]:
        return w.op(
            "Clip", _integers(w, value, *params), *(w.constant(q, name) for q in clipped[1])
        )
    if clipped is None and (qmin, qmax) != _RANGES[name] and not _stays_within(w, x, node):
        bounds = (w.constant((q - zero_point) * scale, "float32") for q in (qmin, qmax))
        value = w.op("Clip", value, *bounds)
    return _integers(w, value, *params)


def _integers(w: Writer, value: str, *params: str) -> Any:
    """Of a value; in some dialects those of a concatenation are one of its parts' integers."""
    maker = w.maker(value) if w.dialect.integer_concatenations else None
    if maker is not None and maker.op_type == "Concat":
        parts = [_integers(w, part, *params) for part in maker.input]
        return w.op("Concat", *parts, axis=maker.attribute[0].i)
    if maker is not None and maker.op_type == "DequantizeLinear" and params == (*maker.input[1:],):
        return maker.input[0]
    return w.op("QuantizeLinear", value, *params)


def _is_summand(w: Writer, node: Node) -> bool:
    """Whether a node rounds what a layer gives, and a sum reads the integers."""
    maker, users = w.producer(node.args[0]), w.graph.users
    if maker is None or ROLES.get(maker.short_op) != WEIGHTED:
        return False
    readers = [reader for user in users[node.name] for reader in users[user.name]]
    return any(reader.short_op == "add" for reader in readers)


def _is_magnified_average(w: Writer, node: Node) -> bool:
    """Whether a node rounds an average to steps that are far finer than those of its integers.

    ONNX Runtime's averages of integers stop at `_MOST_STEPS` of them.
    """
    x, scale = node.args[:2]
    maker = w.producer(x)
    if maker is None or ("mean" not in maker.short_op and "avg_pool" not in maker.short_op):
        return False
    source = rounding_behind(w.graph, maker.args[0])
    return source is not None and arguments(source)["scale"] >= _MOST_STEPS * scale


def _stays_within(w: Writer, x: Any, node: Node) -> bool:
    """Whether a value that a node quantizes is nowhere outside of the node's integers.

    Without a clip that does nothing a runtime can fuse the layer in front.
    """
    maker = w.producer(x)
    if maker is None:
        return False
    if ROLES.get(maker.short_op) == SHARED and not maker.short_op.endswith(("pad", "pad_nd")):
        return all(_stays_within(w, Ref(name), node) for name in maker.refs())
    _, _, zero_point, qmin, qmax, dtype = node.args
    if maker.op == DEQUANTIZE:
        source = rounding_behind(w.graph, x)
        return source is not None and source.args[1:] == node.args[1:]
    largest = qmax == _RANGES[dtype_name(dtype)][1] and qmin <= zero_point
    return largest and (
        maker.short_op in FROM_ZERO
        or (maker.short_op == "hardtanh" and arguments(maker)["min_val"] >= 0)
    )


def _dequantize(w: Writer, node: Node) -> Any:
    if node.op == DEQUANTIZE_WEIGHT:
        return weight(w, Ref(node.name))
    q, scale, zero_point = node.args
    start = w.constant(zero_point, w.meta(q).dtype)
    return w.op("DequantizeLinear", w.read(q), w.constant(scale, "float32"), start)


def zero_point_of(w: Writer, x: Any) -> int:
    """The integer that stands for zero in what an activation is read from; 0 for floats."""
    node = w.producer(x)
    return int(arguments(node)["zero_point"]) if node is not None and node.op == DEQUANTIZE else 0


def scale_of_result(w: Writer, node: Node) -> float | None:
    """The scale at which a node's result is quantized; ``None`` where it is not."""
    roundings = (user for user in w.graph.users[node.name] if user.op == QUANTIZE)
    return next((float(arguments(rounding)["scale"]) for rounding in roundings), None)


def reads_integers(w: Writer, x: Any) -> bool:
    """Whether a tensor is a quantized activation, read back and perhaps moved or multiplied.

    OpenVINO dequantizes behind such operators.
    """
    node = w.producer(x)
    while node is not None and (ROLES.get(node.short_op) == SHARED or node.short_op in _PASSED):
        node = w.producer(next((Ref(name) for name in node.refs()), None))
    return node is not None and node.op == DEQUANTIZE


def padded(w: Writer, x: Any, pads: str, made_by: Node | None = None) -> str:
    """A tensor with zeros around it: around its integers, where another one than 0 is zero.

    OpenVINO moves what dequantizes behind a padding of floats, and the zero point is subtracted
    from its zeros too.

    Args:
        w: the writer.
        x: the tensor.
        pads: the value of ONNX's pads.
        made_by: the node whose result this is; what quantizes it again reads the integers.
    """
    start = zero_point_of(w, x)
    if start == 0:
        # With axes ONNX Runtime leaves it alone: it makes padding of a maximum pool out of it, in
        # which zeros are not numbers.
        axes = w.ints(list(range(w.rank(x))))
        averaged = made_by is not None and any(
            reader.short_op.startswith("avg_pool") for reader in w.graph.users[made_by.name]
        )
        value = fenced(w, x) if averaged else w.read(x)
        return w.op("Pad", value, pads, w.constant(0, w.meta(x).dtype), axes)
    reader = w.producer(x)
    assert reader is not None
    q, scale, _ = reader.args
    zero_point = w.constant(start, w.meta(q).dtype)
    integers = w.op("Pad", w.read(q), pads, zero_point)
    if made_by is not None:
        w.values[f"{made_by.name}.integers"] = (integers, scale, start)
    return w.op("DequantizeLinear", integers, w.constant(scale, "float32"), zero_point)


def _unpack(w: Writer, node: Node) -> Any:
    """Only its reader writes it: as an initializer of four bits."""
    return f"{node.name} is not read by itself"


def _fake_quantize_dynamic(w: Writer, node: Node) -> Any:
    """In float: quantized and dequantized, for layers that are not written on integers."""
    q, scale, zero_point = rounded_dynamically(w, node)
    return w.op("Mul", w.op("Sub", as_float(w, q), as_float(w, zero_point)), scale)


def as_float(w: Writer, value: str) -> str:
    """Integers as floats."""
    return w.op("Cast", value, to=1)


def rounded_dynamically(w: Writer, node: Node) -> tuple[str, str, str]:
    """The integers of a tensor with the range that it has, their scale and zero point."""
    key = f"{node.name}.integers"
    if key not in w.values:
        source = rounded_from(w, Ref(node.name))
        if source is not None:
            w.values[key] = tuple(w.ops("DynamicQuantizeLinear", w.read(source), outputs=3))
        else:
            w.values[key] = _rounded_by_hand(w, node)
    parts: tuple[str, str, str] = w.values[key]
    return parts


def rounded_from(w: Writer, ref: Any) -> Ref | None:
    """What a tensor is rounded from as ``DynamicQuantizeLinear`` does; ``None`` where it is not."""
    node = w.producer(ref)
    if node is None or node.op != DYNAMIC or node.args[1:] != _PLAIN_ROUNDING:
        return None
    source: Ref = node.args[0]
    return source


def _rounded_by_hand(w: Writer, node: Node) -> tuple[str, str, str]:
    """What ``DynamicQuantizeLinear`` does, for other ranges, symmetric, or row by row."""
    x, low, high, symmetric, per_token = node.args
    value, axes = w.read(x), w.ints([-1]) if per_token else ""
    zero = w.constant(0.0, "float32")
    lowest = w.op("Min", w.op("ReduceMin", value, axes, keepdims=int(per_token)), zero)
    highest = w.op("Max", w.op("ReduceMax", value, axes, keepdims=int(per_token)), zero)
    if symmetric:
        width = w.op("Max", w.op("Neg", lowest), highest)
        steps = min(high, -low)
    else:
        width, steps = w.op("Sub", highest, lowest), high - low
    smallest = w.constant(torch.finfo(torch.float32).tiny ** 0.5, "float32")
    scale = w.op("Max", w.op("Div", width, w.constant(float(steps), "float32")), smallest)
    bounds = [w.constant(float(bound), "float32") for bound in (low, high)]
    dtype = held_in(low, high)
    if symmetric:
        moved = w.op("Round", w.op("Div", value, scale))
        zero_point = w.constant(0, dtype)
    else:
        start = w.op("Sub", bounds[0], w.op("Round", w.op("Div", lowest, scale)))
        start = w.op("Clip", start, *bounds)
        moved = w.op("Add", w.op("Round", w.op("Div", value, scale)), start)
        zero_point = w.cast(start, "float32", dtype)
    return w.cast(w.op("Clip", moved, *bounds), "float32", dtype), scale, zero_point


def held_in(low: int, high: int) -> str:
    """The smallest dtype that holds such integers."""
    held = (name for name, (least, most) in _RANGES.items() if least <= low and high <= most)
    return next(held)


def weight(w: Writer, ref: Any, *, transposed: bool = False) -> str:
    """A layer's weight as a float value: of integers that are kept as such, or plain.

    Args:
        w: the writer.
        ref: a constant, or a node that dequantizes one.
        transposed: swap the two axes of a matrix, in the stored tensor itself.
    """
    suffix = ".transposed" if transposed else ""
    known = f"{ref.name}{suffix}.value"
    if known not in w.values:
        integers = weight_behind(w.graph, ref)
        if integers is not None:
            w.values[known] = _dequantized(w, integers, transposed)
        elif w.tensor_of(ref) is not None:
            tensor = w.tensor_of(ref)
            assert tensor is not None
            turned = tensor.t() if transposed else tensor
            w.values[known] = w.initializer(f"{ref.name}{suffix}", turned)
        else:
            value = w.read(ref)
            w.values[known] = w.op("Transpose", value, perm=[1, 0]) if transposed else value
    name: str = w.values[known]
    return name


def integers_of(w: Writer, ref: Any) -> QuantizedWeight | None:
    """A constant weight of whole bytes with a scale for each row, or one for all."""
    constant = weight_behind(w.graph, ref)
    by_rows = (
        constant is not None and constant.unpack is None and constant.channel_scale(0) is not None
    )
    return constant if by_rows else None


def floats_of(w: Writer, ref: Any) -> Tensor | None:
    """The floats that a constant is, or stands for as integers; ``None`` for what is computed."""
    integers = weight_behind(w.graph, ref)
    return w.tensor_of(ref) if integers is None else integers.floats()


def _dequantized(w: Writer, integers: QuantizedWeight, transposed: bool) -> str:
    suffix = ".transposed" if transposed else ""
    scales, zeros, where = scales_of(integers)
    values, shape = integers.stored, integers.shape
    if transposed:
        values, shape = integers.integers.t(), shape[::-1]
        scales, zeros = (v.t() if v.dim() == 2 else v for v in (scales, zeros))
        where = where | {"axis": 1 - where["axis"]} if where else where
    _, scale, zero_point = (f"{name}{suffix}" for name in integers.reader.refs())
    name = f"{integers.name}{suffix}"
    # ONNX Runtime wants zero points for its integer Gemm and convolution; in a product of matrices
    # a list of them, even of zeros, makes it choose slow kernels.
    affine = not transposed or not integers.symmetric
    if integers.unpack is None:
        value = w.initializer(name, values)
        start = w.initializer(zero_point, zeros.to(values.dtype)) if affine else ""
    else:
        dtype = "int4" if integers.signed else "uint4"
        packed = octavo_operators.pack_int4(values.contiguous()) if transposed else values
        value = w.packed_initializer(name, packed, shape, dtype)
        packed, shape = octavo_operators.pack_int4(zeros.contiguous()), list(zeros.shape)
        start = w.packed_initializer(zero_point, packed, shape, dtype) if affine else ""
    return w.op("DequantizeLinear", value, w.initializer(scale, scales), start, **where)


def scales_of(integers: QuantizedWeight) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Scales and zero points in ONNX's form, and what says where in the weight they belong."""
    scale, zero_point, axis = integers.scale, integers.zero_point, integers.axis
    if integers.grouped:
        last = max(axis for axis, size in enumerate(scale.shape) if size > 1)
        size = integers.shape[last] // scale.shape[last]
        return scale, zero_point, {"axis": last, "block_size": size}
    form = [] if axis is None else [-1]
    return scale.reshape(form), zero_point.reshape(form), {} if axis is None else {"axis": axis}


def bias(w: Writer, x: Any, weight_ref: Any, ref: Any) -> str:
    """A layer's bias: int32 with the scale of its sums where the dialect asks for it.

    The rounding is at most half a step of the sums themselves.
    """
    if ref is None:
        return ""
    tensor, integers, source = w.tensor_of(ref), integers_of(w, weight_ref), w.producer(x)
    if (
        not w.dialect.integer_bias
        or tensor is None
        or integers is None
        or source is None
        or source.op != DEQUANTIZE
        or not integers.symmetric
        or integers.shape[0] != len(tensor)
    ):
        return w.read(ref)
    step = scales_of(integers)[0] * arguments(source)["scale"]
    if not fits_sums(tensor, step):  # runtimes would cut a float bias to it
        raise ExportError(
            f"{ref.name}: the bias is not int32 in steps of {x.name}'s scale times the weight's; "
            "quantize the model again: convert makes room for it"
        )
    return bias_of_sums(w, f"{ref.name}.of.{x.name}", tensor, step)


def fits_sums(tensor: Tensor, step: Tensor) -> bool:
    """Whether a bias in steps of a layer's sums is int32."""
    return bool((_in_steps(tensor, step).abs() <= _INT32).all())


def bias_of_sums(w: Writer, name: str, tensor: Tensor, step: Tensor) -> str:
    """A bias in steps of a layer's sums."""
    stored = w.initializer(f"{name}.int32", _in_steps(tensor, step).to(torch.int32))
    scales = w.initializer(f"{name}.scale", step)
    return w.op("DequantizeLinear", stored, scales, axis=0 if step.dim() else None)


def _in_steps(tensor: Tensor, step: Tensor) -> Tensor:
    return torch.round(tensor.double() / step.double())


CONVERTERS = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "unpack_int4": _unpack,
    "fake_quantize_dynamic": _fake_quantize_dynamic,
}
