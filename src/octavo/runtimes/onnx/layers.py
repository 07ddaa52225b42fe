"""Layers with weights, products and normalization."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.onnx import quantization
from octavo.runtimes.onnx.sizes import TO_THE_END, length_of
from octavo.runtimes.onnx.writer import Converter, Writer


def each(value: Any, dims: int) -> list[int]:
    """A size for each dimension, given as one number, one in a list, or all."""
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return [int(size) for size in (sizes * dims if len(sizes) == 1 else sizes)]


def _conv(w: Writer, node: Node) -> Any:
    given = arguments(node)
    x, weight_ref = given["input"], given["weight"]
    kernel = [int(size) for size in w.meta(weight_ref).shape[2:] if size is not None]
    dims = len(kernel)
    dilation, strides = each(given["dilation"], dims), each(given["stride"], dims)
    pads = _pads(given["padding"], kernel, dilation)
    value = w.read(x)
    if any(pads) and kernel == [1] * dims and strides != kernel:
        value, pads, strides = _picked(w, x, pads, strides), [0] * (2 * dims), kernel
    inputs, outputs = w.meta(weight_ref).shape[1], w.meta(weight_ref).shape[0]
    multiplies = dims == 3 and inputs == 1 and outputs != given["groups"]
    return w.op(
        "Conv",
        value,
        weight(w, weight_ref, plain=multiplies and not w.dialect.integer_multipliers),
        quantization.bias(w, x, weight_ref, given["bias"]),
        kernel_shape=kernel,
        strides=strides,
        dilations=dilation,
        pads=pads,
        group=int(given["groups"]),
    )


def weight(w: Writer, ref: Any, plain: bool) -> str:
    """A layer's weight, of integers; as the floats that these stand for if ``plain``."""
    floats = quantization.floats_of(w, ref) if plain else None
    if floats is None:
        return quantization.weight(w, ref)
    return w.initializer(f"{ref.name}.floats", floats)


def _picked(w: Writer, x: Any, pads: list[int], strides: list[int]) -> str:
    """What a 1x1 convolution with a stride reads, of its padded input.

    OpenVINO moves such a stride in front of the convolution, and leaves the padding behind it.
    """
    dims = len(strides)
    around = quantization.padded(w, x, w.ints([0, 0, *pads[:dims], 0, 0, *pads[dims:]]))
    starts, ends, axes = [0] * dims, [TO_THE_END] * dims, range(2, 2 + dims)
    return w.op("Slice", around, *(w.ints(part) for part in (starts, ends, axes, strides)))


def _pads(padding: Any, kernel: list[int], dilation: list[int]) -> list[int]:
    """ONNX's pads: at the start of each dimension, then at the end of each."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return each(padding, len(kernel)) * 2


def _matmul(w: Writer, node: Node) -> Any:
    return w.op("MatMul", *(w.read(arg) for arg in node.args[:2]))


def _einsum(w: Writer, node: Node) -> Any:
    equation, operands = node.args[:2]
    return w.op("Einsum", *(w.read(arg) for arg in operands), equation=equation)


def _batch_norm(w: Writer, node: Node) -> Any:
    given = arguments(node)
    if given["running_mean"] is None:
        return _by_batch(w, node)
    return w.op(
        "BatchNormalization",
        w.read(given["input"]),
        *_scale_and_shift(w, node),
        w.read(given["running_mean"]),
        w.read(given["running_var"]),
        epsilon=float(given["eps"]),
    )


def _by_batch(w: Writer, node: Node) -> str:
    """A batch norm without running statistics: by the mean and variance of the call's batch."""
    given = arguments(node)
    x, rank = w.read(given["input"]), w.rank(given["input"])
    axes = w.ints([axis for axis in range(rank) if axis != 1])
    centred = w.op("Sub", x, w.op("ReduceMean", x, axes, keepdims=1))
    variance = w.op("ReduceMean", w.op("Mul", centred, centred), axes, keepdims=1)
    small = w.constant(float(given["eps"]), w.meta(node).dtype)
    normed = w.op("Div", centred, w.op("Sqrt", w.op("Add", variance, small)))
    return _scaled_and_shifted(w, node, normed)


def _scaled_and_shifted(w: Writer, node: Node, value: str) -> str:
    """Times the weight and plus the bias of each channel, where there are any."""
    given = arguments(node)
    behind = w.ints(range(1, w.rank(given["input"]) - 1))
    for kind, ref in (("Mul", given["weight"]), ("Add", given["bias"])):
        if ref is not None:
            channels = w.read(ref)
            if w.rank(given["input"]) > 2:
                channels = w.op("Unsqueeze", channels, behind)
            value = w.op(kind, value, channels)
    return value


def _scale_and_shift(w: Writer, node: Node) -> list[str]:
    """A normalization's weight and bias for each channel, also where it has none."""
    given = arguments(node)
    x = given["input"]
    channels, dtype = w.meta(x).shape[1], w.meta(x).dtype

    def all_of(number: float) -> str:
        if channels is None:
            return w.op("Expand", w.constant(number, dtype), length_of(w, w.read(x), 1))
        return w.constant([number] * channels, dtype)

    return [
        all_of(default) if ref is None else w.read(ref)
        for ref, default in ((given["weight"], 1.0), (given["bias"], 0.0))
    ]


def _group_norm(w: Writer, node: Node) -> Any:
    """ONNX's own GroupNormalization is of a later opset than all else here."""
    given = arguments(node)
    x, groups, dtype = w.read(given["input"]), int(given["num_groups"]), w.meta(node).dtype
    normed = w.op(
        "InstanceNormalization",
        w.op("Reshape", x, w.ints([0, groups, -1])),
        w.constant([1.0] * groups, dtype),
        w.constant([0.0] * groups, dtype),
        epsilon=float(given["eps"]),
    )
    return _scaled_and_shifted(w, node, w.op("Reshape", normed, w.op("Shape", x)))


def _instance_norm(w: Writer, node: Node) -> Any:
    given = arguments(node)
    if not given["use_input_stats"]:
        return _batch_norm(w, node)
    return w.op(
        "InstanceNormalization",
        w.read(given["input"]),
        *_scale_and_shift(w, node),
        epsilon=float(given["eps"]),
    )


def _layer_norm(w: Writer, node: Node) -> Any:
    given = arguments(node)
    sizes, weight, bias = given["normalized_shape"], given["weight"], given["bias"]
    scale = w.constant(np.ones(sizes), w.meta(node).dtype) if weight is None else w.read(weight)
    return w.op(
        "LayerNormalization",
        w.read(given["input"]),
        scale,
        "" if bias is None else w.read(bias),
        axis=-len(sizes),
        epsilon=float(given["eps"]),
    )


def _rms_norm(w: Writer, node: Node) -> Any:
    given = arguments(node)
    x, eps = w.read(given["input"]), given["eps"]
    axes = w.ints(range(-len(given["normalized_shape"]), 0))
    mean = w.op("ReduceMean", w.op("Mul", x, x), axes, keepdims=1)
    small = w.constant(1.1920929e-07 if eps is None else float(eps), "float32")
    normed = w.op("Div", x, w.op("Sqrt", w.op("Add", mean, small)))
    weight = given["weight"]
    return normed if weight is None else w.op("Mul", normed, w.read(weight))


CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], _conv),
    **dict.fromkeys(["matmul", "bmm", "mv", "dot"], _matmul),
    "einsum": _einsum,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "rms_norm": _rms_norm,
}
