"""Biases as integer kernels add them: whole multiples of the step of a layer's sums.

A sum of integer products counts in steps of ``input scale * weight scale``, and ONNX Runtime, like
every kernel without floats, adds an int32 bias to it (Jacob et al. 2018, arXiv:1712.05877, section
2.4). A step of the output is hundreds of those, so nothing is lost by rounding; but a model whose
biases lie between them is another model there, one result in a thousand a step off.

Steps of a channel whose weights are near zero are tiny, and its bias may be more of them than an
int32 counts: such a channel gets a larger scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from octavo.numerics.affine import QParams, broadcast, quantized
from octavo.quantization.weights.layers import Layer, Rounded
from octavo.quantization.weights.method import WeightMethod

# Steps that a bias may have: half of int32, whose other half is for the sum of the products.
LARGEST_BIAS = 2**30


def integer_bias(bias: Tensor, step: Tensor) -> Tensor:
    """The nearest multiples of the steps, half to even.

    Args:
        bias: float ``[out]``.
        step: input scale times weight scale, float ``[]`` or ``[out]``, positive.

    Example:
        >>> integer_bias(torch.tensor([1.1, -0.9]), torch.tensor([0.5, 0.25]))
        tensor([ 1., -1.])
    """
    exact = step.double()
    return (torch.round(bias.double() / exact) * exact).to(bias.dtype)


def with_room(weight: QParams, source: QParams, bias: Tensor) -> QParams:
    """A weight's qparams, scales raised where the bias would be no int32 in steps of its sums.

    That is a channel which has a bias and next to no weights: a pruned filter, or a batch norm with
    a factor near zero. ONNX Runtime's own quantizer does the same (microsoft/onnxruntime #21000).

    Args:
        weight: of the weight, without groups.
        given: of the layer's input.
        bias: float ``[out]``.
    """
    least = bias.detach().abs() / source.scale.detach().to(bias.device) / LARGEST_BIAS
    # Groups of a transposed convolution share their scales.
    least = least.reshape(-1, weight.scale.numel()).amax(0).to(weight.scale)
    if weight.scheme.power_of_two:
        least = torch.exp2(torch.ceil(torch.log2(least)))
    return replace(weight, scale=torch.maximum(weight.scale, least.reshape(weight.scale.shape)))


def step_of_sums(weight: QParams, source: QParams, outputs: int) -> Tensor:
    """Of each of so many output channels, or of all, in float32 as an int32 bias's scale is."""
    step = weight.scale * source.scale.to(weight.scale.device)
    # Groups of a transposed convolution share their scales.
    return step.repeat(outputs // len(step)) if step.dim() else step


@dataclass(frozen=True)
class IntegerBiases(WeightMethod):
    """Biases of static layers become whole steps of their sums, and fit into int32.

    It comes last, by itself: every runtime needs it.
    """

    name: ClassVar[str] = "integer biases"

    def fits(self, layer: Layer) -> bool:
        """Whether the layer adds up products of integers, in steps that a channel has one of."""
        return layer.runs == "int8" and layer.takes_bias and layer.scheme.group_size is None

    def round(self, layer: Layer, now: Rounded, seen: object) -> Rounded:
        """Scales raised as `with_room` does; what they belong to is rounded to nearest again."""
        if now.bias is None or now.input is None:
            return now
        raised = with_room(now.qparams, now.input, now.bias)
        if torch.equal(raised.scale, now.qparams.scale):
            return now
        nearest, axis = quantized(layer.weight.detach(), raised), raised.scheme.channel_axis
        changed = broadcast(raised.scale > now.qparams.scale, nearest.dim(), axis)
        return replace(now, integers=torch.where(changed, nearest, now.integers), qparams=raised)

    def bias(self, layer: Layer, now: Rounded, seen: object) -> Tensor | None:
        if now.bias is None or now.input is None:
            return now.bias
        step = step_of_sums(now.qparams, now.input, len(now.bias))
        return integer_bias(now.bias, step.to(now.bias.device))
