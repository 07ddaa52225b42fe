"""Transposed convolutions.

Where each pixel is spread over a block of its own, a transposed convolution is one of a single
pixel and a move. ONNX Runtime has kernels on integers for both, and for the operator itself none.

Tested in tests/runtimes/onnx/test_transposed.py.
"""

from __future__ import annotations

from typing import Any

from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE, QuantizedWeight, rounding_behind, weight_behind
from octavo.runtimes.onnx import loading, quantization
from octavo.runtimes.onnx.clips import bounds_of
from octavo.runtimes.onnx.layers import each, weight
from octavo.runtimes.onnx.sizes import joined
from octavo.runtimes.onnx.writer import Converter, Writer

_CHANNELS_LAST, _CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_BLOCKS_IN_PLACE = [0, 1, 3, 2, 4]  # of [N, height, width, rows, columns * channels]


def _conv_transpose(w: Writer, node: Node) -> Any:
    if w.dialect.integer_blocks and _is_of_blocks(w, node):
        return _of_blocks(w, node)
    given, kernel = arguments(node), _kernel(w, node)
    dims, weight_ref = len(kernel), given["weight"]
    strides = each(given["stride"], dims)
    gaps = any(k < stride for k, stride in zip(kernel, strides, strict=True))
    plain = gaps and not w.dialect.integer_gaps
    return w.op(
        "ConvTranspose",
        w.read(given["input"]),
        weight(w, weight_ref, plain) if plain else loading.weight(w, weight_ref),
        "" if given["bias"] is None else w.read(given["bias"]),
        kernel_shape=kernel,
        strides=strides,
        dilations=each(given["dilation"], dims),
        pads=each(given["padding"], dims) * 2,
        output_padding=each(given["output_padding"], dims),
        group=int(given["groups"]),
    )


def _kernel(w: Writer, node: Node) -> list[int]:
    sizes = w.meta(arguments(node)["weight"]).shape[2:]
    return [int(size) for size in sizes if size is not None]


def _is_of_blocks(w: Writer, node: Node) -> bool:
    """Whether a layer on integers spreads each pixel of an image over a block of its own."""
    given, kernel = arguments(node), _kernel(w, node)
    plain = {"stride": kernel, "padding": [0, 0], "output_padding": [0, 0], "dilation": [1, 1]}
    return (
        len(kernel) == 2
        and given["groups"] == 1
        and all(each(given[name], 2) == sizes for name, sizes in plain.items())
        and _on_integers(w, node)
        and _is_rounded(w, node)
    )


def _on_integers(w: Writer, node: Node) -> bool:
    """Whether a layer reads integers, its weight has a scale for each channel, and all fits."""
    given = arguments(node)
    source, integers = w.producer(given["input"]), weight_behind(w.graph, given["weight"])
    if source is None or source.op != DEQUANTIZE or integers is None or not integers.symmetric:
        return False
    scale = integers.channel_scale(1) if integers.unpack is None else None
    bias = None if given["bias"] is None else w.tensor_of(given["bias"])
    if scale is None or (bias is None) != (given["bias"] is None):
        return False
    return bias is None or quantization.fits_sums(bias, scale * arguments(source)["scale"])


def _is_rounded(w: Writer, node: Node) -> bool:
    """Whether its integers are all that is read of a result, which a clip may cut before."""
    user = w.graph.only_user(node.name)
    if user is None or user.op == QUANTIZE:
        return user is not None
    return bounds_of(user) is not None and _is_rounded(w, user)


def _of_blocks(w: Writer, node: Node) -> str:
    given, (rows, columns) = arguments(node), _kernel(w, node)
    x, integers = given["input"], weight_behind(w.graph, given["weight"])
    assert integers is not None
    convolved = w.op(
        "Conv",
        w.read(x),
        _pixel_weight(w, integers),
        _pixel_bias(w, node, integers),
        kernel_shape=[1, 1],
    )
    channels = integers.shape[1]
    pixels = w.op("Transpose", convolved, perm=_CHANNELS_LAST)
    parts = w.op("Reshape", pixels, w.ints([0, 0, 0, rows, columns * channels]))
    blocks = w.op("Transpose", parts, perm=_BLOCKS_IN_PLACE)
    image = w.op("Reshape", blocks, _sizes(w, node, [rows, columns], channels))
    return w.op("Transpose", image, perm=_CHANNELS_FIRST)


def _pixel_weight(w: Writer, integers: QuantizedWeight) -> str:
    """``[rows * columns * channels, inputs, 1, 1]`` of ``[inputs, channels, rows, columns]``."""
    inputs, _, rows, columns = integers.shape
    by_pixel = integers.integers.permute(2, 3, 1, 0).reshape(-1, inputs, 1, 1)
    scale = integers.channel_scale(1)
    assert scale is not None
    q, scales, starts = (f"{name}.blocks" for name in integers.reader.refs())
    scale = scale.repeat(rows * columns)
    zeros = scale.new_zeros(len(scale), dtype=by_pixel.dtype)
    values = (w.initializer(n, t) for n, t in ((q, by_pixel), (scales, scale), (starts, zeros)))
    return w.op("DequantizeLinear", *values, axis=0)


def _pixel_bias(w: Writer, node: Node, integers: QuantizedWeight) -> str:
    x, ref = (arguments(node)[name] for name in ("input", "bias"))
    bias, scale, source = w.tensor_of(ref), integers.channel_scale(1), w.producer(x)
    if bias is None or scale is None or source is None:
        return ""
    count = len(integers.integers[0, 0].flatten())
    step = scale * arguments(source)["scale"]
    name = f"{ref.name}.of.{x.name}.blocks"
    return quantization.bias_of_sums(w, name, bias.repeat(count), step.repeat(count))


def _sizes(w: Writer, node: Node, block: list[int], channels: int) -> str:
    """The sizes of the result, channels last."""
    batch, _, *sides = w.meta(node).shape
    known = [-1 if size is None else size for size in (batch, *sides, channels)]
    if known.count(-1) <= 1:
        return w.ints(known)
    x = arguments(node)["input"]
    rounding = rounding_behind(w.graph, x)  # that nothing is read back for its sizes alone
    before = w.op("Shape", w.read(x if rounding is None else Ref(rounding.name)), start=2)
    return joined(w, [-1], w.op("Mul", before, w.ints(block)), [channels])


CONVERTERS: dict[str, Converter] = dict.fromkeys(
    ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], _conv_transpose
)
