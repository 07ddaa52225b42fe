"""Convolutions and linear layers.

Tested in tests/runtimes/litert/test_layers.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.graph.qdq import DYNAMIC, weight_behind
from octavo.runtimes.litert.flatbuffer import SAME, VALID, Quantization
from octavo.runtimes.litert.values import FLOAT, Form, Value
from octavo.runtimes.litert.windows import Windows, each, padded
from octavo.runtimes.litert.writer import Converter, Writer

_INT16_BIAS, _BIAS = "int64", "int32"


def as_image(w: Writer, ref: Any) -> Value:
    """What a layer with windows reads: channels last, a sequence as an image of height 1."""
    x = w.read(ref, last=True)
    if len(x.shape) == 4:
        return x
    batch, length, channels = x.shape
    return w.reshaped(x, [batch, 1, length, channels], last=True)


def image_shape(w: Writer, node: Node) -> tuple[int, int, int, int]:
    """The shape of a node's result, as an image with channels last."""
    shape = w.shape(node)
    batch, channels, sizes = shape[0], shape[1], shape[2:]
    high, wide = sizes if len(sizes) == 2 else (1, *sizes)
    return batch, high, wide, channels


def as_graph_has_it(w: Writer, node: Node, image: Value) -> Value:
    """An image as the sequence that it stands for, where it does."""
    shape = w.shape(node)
    if len(shape) == 4:
        return image
    return w.reshaped(image, [shape[0], shape[2], shape[1]], last=True)


def _conv(w: Writer, node: Node) -> Value:
    given = arguments(node)
    image, shape = as_image(w, given["input"]), image_shape(w, node)
    weight = _filters(w, given["weight"])
    groups, channels = int(given["groups"]), image.shape[-1]
    windows = Windows.of(weight.sizes[2:], given["stride"], given["padding"], given["dilation"])
    x, padding = padded(w, image, windows, shape[1:3])
    depthwise = groups == channels and groups > 1
    order, axis = ((1, 2, 3, 0), 3) if depthwise else ((0, 2, 3, 1), 0)
    filters = weight.written(w, order, axis, packs=not depthwise)
    inputs = [x, filters, bias(w, given["bias"], shape[-1], x, filters)]
    settings = {
        "padding": padding,
        "strideH": windows.strides[0],
        "strideW": windows.strides[1],
        "dilationHFactor": windows.dilation[0],
        "dilationWFactor": windows.dilation[1],
        "fusedActivationFunction": w.activation(),
    }
    kind, options = "CONV_2D", "Conv2DOptions"
    if depthwise:
        kind, options = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        settings["depthMultiplier"] = shape[-1] // channels
    made = w.op(kind, inputs, shape, w.form(node), options, last=True, **settings)
    return as_graph_has_it(w, node, made)


def _conv_transpose(w: Writer, node: Node) -> Value:
    given = arguments(node)
    image, shape = as_image(w, given["input"]), image_shape(w, node)
    weight = _filters(w, given["weight"]).dense(int(given["groups"]), each(given["dilation"], 2))
    windows = Windows.of(weight.sizes[2:], given["stride"], given["padding"])
    filters = weight.written(w, (1, 2, 3, 0), 0, packs=False)
    added = bias(w, given["bias"], shape[-1], image, filters)
    form, steps = w.form(node), windows.strides
    whole = [  # padding cuts some of it off, output_padding adds some that is the bias
        max((size - 1) * step + reach, before + out)
        for size, step, reach, before, out in zip(
            image.shape[1:3], steps, windows.size, windows.before, shape[1:3], strict=True
        )
    ]
    is_same = _cuts_evenly(image.shape[1:3], whole, windows, shape[1:3])
    made_shape = shape if is_same else (shape[0], *whole, shape[-1])
    made = w.op(
        "TRANSPOSE_CONV",
        [w.ints(made_shape), filters, image, added],
        made_shape,
        form,
        "TransposeConvOptions",
        last=True,
        padding=SAME if is_same else VALID,
        strideH=steps[0],
        strideW=steps[1],
    )
    return as_graph_has_it(w, node, _cut(w, made, windows.before, shape))


def _cuts_evenly(
    image: Sequence[int], whole: Sequence[int], windows: Windows, result: Sequence[int]
) -> bool:
    """Whether LiteRT's SAME leaves the same part of the whole result as the layer does."""
    return all(
        full >= out and -(-out // step) == size and (full - out) // 2 == before
        for size, full, step, before, out in zip(
            image, whole, windows.strides, windows.before, result, strict=True
        )
    )


def _cut(w: Writer, made: Value, before: Sequence[int], shape: Sequence[int]) -> Value:
    """The part of a result that the layer returns."""
    if made.shape == tuple(shape):
        return made
    begin = w.ints([0, *before, 0])
    return w.op("SLICE", [made, begin, w.ints(shape)], shape, made.form, "SliceOptions", last=True)


def _linear(w: Writer, node: Node) -> Value:
    given = arguments(node)
    shape, rounds = w.shape(node), _rounds_itself(w, given)
    source = w.graph.by_name[given["input"].name].args[0] if rounds else given["input"]
    x = w.read(source, last=False)
    weight = _matrix(w, given["weight"], rounds)
    made = w.op(
        "FULLY_CONNECTED",
        [x, weight, bias(w, given["bias"], shape[-1], x, weight)],
        shape,
        w.form(node),
        "FullyConnectedOptions",
        fusedActivationFunction=w.activation(),
        keepNumDims=len(shape) != 2,
        asymmetricQuantizeInputs=rounds,
    )
    return made


def _rounds_itself(w: Writer, given: Mapping[str, Any]) -> bool:
    """Whether LiteRT's layer rounds its rows by their ranges as the oracle does: rows of int8."""
    producer, weight = w.graph.producer(given["input"]), weight_behind(w.graph, given["weight"])
    if producer is None or producer.op != DYNAMIC or weight is None:
        return False
    rounding = arguments(producer)
    is_int8 = (rounding["qmin"], rounding["qmax"]) == (-128, 127) and not rounding["symmetric"]
    rows = rounding["per_token"] or len(w.shape(producer)) == 1
    return bool(is_int8 and rows and weight.symmetric and weight.signed and not weight.grouped)


def _matrix(w: Writer, ref: Any, dynamic: bool) -> Value:
    """A linear layer's weight: integers where the layer multiplies those."""
    weight = _filters(w, ref)
    if weight.scales is None and weight_behind(w.graph, ref) is not None:  # of groups, say
        return w.read_floats(ref, last=False)
    return weight.written(w, (0, 1), 0, dynamic)


class _Filters:
    """A layer's weight, with its outputs and inputs in torch's order.

    Args:
        name: of the constant.
        tensor: the numbers, with the axes of an image.
        scales: of its outputs, or one, where it is integers; ``None`` for floats.
        four_bits: whether these have four bits.
    """

    def __init__(
        self, name: str, tensor: Tensor, scales: Sequence[float] | None, four_bits: bool = False
    ) -> None:
        self.name, self.tensor, self.scales, self.four_bits = name, tensor, scales, four_bits
        self.sizes = tuple(tensor.shape)

    def dense(self, groups: int, dilation: Sequence[int]) -> _Filters:
        """A transposed filter without groups and dilation, which LiteRT has not: zeros stand where
        they leave something out.
        """
        inputs, outputs, *size = self.sizes
        reach = [step * (count - 1) + 1 for step, count in zip(dilation, size, strict=True)]
        whole = self.tensor.new_zeros(inputs, groups * outputs, *reach)
        high, wide = (slice(None, None, step) for step in dilation)
        for group, (into, own) in enumerate(
            zip(whole.chunk(groups), self.tensor.chunk(groups), strict=True)
        ):
            into[:, group * outputs : (group + 1) * outputs, high, wide] = own
        many = groups if self.scales is not None and len(self.scales) > 1 else 1
        scales = None if self.scales is None else [*self.scales] * many
        return _Filters(self.name, whole, scales, self.four_bits)

    def written(
        self,
        w: Writer,
        order: Sequence[int],
        axis: int,
        dynamic: bool = False,
        packs: bool = True,
    ) -> Value:
        """The weight in the file.

        Args:
            w: the file.
            order: of the axes there.
            axis: of its outputs there.
            dynamic: whether integers multiply floats that the layer rounds.
            packs: whether it may be integers of four bits, two to a byte.
        """
        integers = self.tensor.permute(*order).contiguous().numpy()
        if self.scales is None:
            return w.constant(integers, FLOAT, self.name)
        scales = tuple(self.scales)
        numbers = Quantization(scales, (0,) * len(scales), axis if len(scales) > 1 else 0)
        dtype = "int4" if packs and self.four_bits else "int8"
        value = w.constant(integers, Form(dtype, numbers), self.name)
        return value if w.on_integers or dynamic else w.requantized(value, FLOAT)


def _filters(w: Writer, ref: Any) -> _Filters:
    weight = weight_behind(w.graph, ref)
    if weight is not None and not weight.grouped and weight.symmetric and weight.signed:
        scales, integers = weight.scale.flatten().tolist(), _as_image_filter(weight.integers)
        return _Filters(weight.name, integers, scales, weight.unpack is not None)
    tensor = w.tensor_of(ref)
    if tensor is None:
        raise ExportError("its weight is computed by the model")
    return _Filters(ref.name, _as_image_filter(tensor.detach().to(torch.float32)), None)


def _as_image_filter(tensor: Tensor) -> Tensor:
    """A filter of a sequence as that of an image of height 1."""
    return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor


def bias(w: Writer, ref: Any, count: int, x: Value, weight: Value) -> Value:
    """A layer's bias, in the numbers of its sums; zeros where it has none."""
    floats = torch.zeros(count) if ref is None else w.tensor_of(ref)
    if floats is None:
        raise ExportError("its bias is computed by the model")
    values = floats.detach().double().numpy()
    name = "zeros" if ref is None else ref.name
    if not w.on_integers:
        return w.constant(values, FLOAT, name)
    assert weight.form.quantization is not None
    scales = np.float64(x.form.scale) * np.asarray(weight.form.quantization.scales)
    dtype = _INT16_BIAS if x.form.dtype == "int16" else _BIAS
    ends = np.iinfo(dtype)
    sums = np.clip(np.rint(values / scales), ends.min, ends.max).astype(dtype)
    many = tuple(float(scale) for scale in scales)
    return w.constant(sums, Form(dtype, Quantization(many, (0,) * len(many))), name)


CONVERTERS: dict[str, Converter] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "linear": _linear,
}
