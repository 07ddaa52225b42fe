"""What a channel is multiplied by and raised by, as a depthwise convolution: it rounds once.

LiteRT's kernels for products of integers want a second tensor of eight bits, whose scale is one for
all channels; those of convolutions take a scale for each, and a shift of 32 bits.

Tested in tests/runtimes/litert/test_pooling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.runtimes.litert.flatbuffer import VALID, Quantization
from octavo.runtimes.litert.values import FLOAT, Form, Value, channels_last
from octavo.runtimes.litert.windows import Windows
from octavo.runtimes.litert.writer import Converter, Writer

_ONE_BY_ONE = Windows((1, 1), (1, 1), (1, 1), (0, 0))
_INTEGERS = np.arange(127, 31, -1)  # the larger, the smaller the steps of a sum
_SMALLEST = float(np.finfo(np.float32).tiny)  # a scale; one of zero is none


def summed(
    w: Writer,
    x: Value,
    shape: Sequence[int],
    form: Form,
    factors: Any,
    shifts: Any,
    windows: Windows = _ONE_BY_ONE,
    padding: int = VALID,
) -> Value:
    """The sum of each window in each channel, times a factor and raised by a shift.

    Args:
        w: the file.
        x: an image, channels last.
        shape: of the result, channels last.
        form: of the result; integers are made of integers.
        factors, shifts: numbers, or one for each channel.
        windows: over the image.
        padding: of the schema.
    """
    channels = x.shape[-1]
    factors, shifts = (np.broadcast_to(np.float64(n), channels) for n in (factors, shifts))
    if form.quantization is None:
        ones = np.ones((1, *windows.size, channels)) * factors
        weight, added = w.constant(ones, FLOAT, "factors"), w.constant(shifts, FLOAT, "shifts")
    else:
        weight, added = _in_integers(w, x, factors, shifts, windows)
    return w.op(
        "DEPTHWISE_CONV_2D",
        [x, weight, added],
        shape,
        form,
        "DepthwiseConv2DOptions",
        last=True,
        padding=padding,
        strideH=windows.strides[0],
        strideW=windows.strides[1],
        dilationHFactor=1,
        dilationWFactor=1,
        depthMultiplier=1,
        fusedActivationFunction=w.activation(),
    )


def _in_integers(
    w: Writer, x: Value, factors: Any, shifts: Any, windows: Windows
) -> tuple[Value, Value]:
    """Integers whose scales make them the factors, and the shifts in steps of the sums.

    Any integer will do: each channel has the one for which its shift is nearest to whole steps.
    """
    sizes = np.maximum(np.abs(factors), _SMALLEST)
    candidates = _INTEGERS[:, None]
    steps = np.float64(x.form.scale) * (sizes / candidates).astype(np.float32)
    missed = np.abs(np.rint(shifts / steps) * steps - shifts)
    integers = _INTEGERS[np.argmin(missed, axis=0)]
    scales = (sizes / integers).astype(np.float32)
    numbers = Quantization(tuple(map(float, scales)), (0,) * len(scales), 3)
    weights = np.ones((1, *windows.size, len(scales))) * np.where(factors < 0, -integers, integers)
    steps = np.float64(x.form.scale) * scales
    wide = "int64" if x.form.dtype == "int16" else "int32"
    ends = np.iinfo(wide)
    sums = np.clip(np.rint(shifts / steps), ends.min, ends.max)
    of_sums = Form(wide, Quantization(tuple(map(float, steps)), (0,) * len(scales)))
    factor = w.constant(weights, Form("int8", numbers), "factors")
    return factor, w.constant(sums, of_sums, "shifts")


def scaled(w: Writer, node: Node, factors: Any, shifts: Any) -> Value:
    """What a node reads, times factors and raised by shifts, which are numbers or of channels."""
    ref, shape = node.args[0], w.shape(node)
    per_channel = np.ndim(factors) > 0
    x = w.read(ref, last=True if per_channel and len(shape) > 2 else None)
    channels = x.shape[-1] if x.shape else 1
    image = w.reshaped(x, [1, 1, int(np.prod(x.shape)) // channels, channels], last=True)
    made = summed(w, image, image.shape, w.form(node), factors, shifts)
    return w.reshaped(made, channels_last(shape) if x.last else shape, x.last)


def _batch_norm(w: Writer, node: Node) -> Value:
    given = arguments(node)
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (
        None if given[name] is None else w.tensor_of(given[name]) for name in names
    )
    assert mean is not None
    assert variance is not None
    factors = 1 / np.sqrt(variance.double().numpy() + given["eps"])
    if weight is not None:
        factors = factors * weight.detach().double().numpy()
    shifts = -mean.double().numpy() * factors
    if bias is not None:
        shifts = shifts + bias.detach().double().numpy()
    return scaled(w, node, factors, shifts)


def _hardsigmoid(w: Writer, node: Node) -> Value:
    raised = scaled(w, node, 1.0, 3.0)
    cut = w.op("RELU6", [raised], raised.shape, raised.form, last=raised.last)
    six = w.constant(np.float32(6), FLOAT, "six")  # as torch does: a product rounds otherwise
    return w.op("DIV", [cut, six], cut.shape, cut.form, "DivOptions", last=cut.last)


CONVERTERS: dict[str, Converter] = {"batch_norm": _batch_norm, "hardsigmoid": _hardsigmoid}
