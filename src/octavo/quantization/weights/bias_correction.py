"""Bias correction: rounding a layer's weights shifts the mean of its output; its bias can take that
back (Nagel et al. 2019, Data-Free Quantization, arXiv:1906.04721, section 4.2, with the means of
the inputs measured during calibration).

With ``w' = w + e`` the rounded weight, ``E[w'x] - E[wx] = e E[x]``: subtract it from the bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from octavo.arguments import expect, of
from octavo.graph.graph import GRAPH, Graph
from octavo.graph.operators import arguments
from octavo.graph.weight_layouts import groups_of
from octavo.numerics.affine import QParams, dequantized, quantized
from octavo.quantization.plan import Plan
from octavo.quantization.weights.layers import (
    Layer,
    Rounded,
    layer_of,
    quantized_layers,
    with_biases,
)
from octavo.quantization.weights.method import WeightMethod


@dataclass(frozen=True)
class Average:
    """A mean, float32 ``[channels]``, and how many values each of it is of."""

    mean: Tensor
    values: int


@dataclass(frozen=True)
class Mean:
    """The statistic ``E[x]`` of each index of one axis."""

    axis: int

    def update(self, state: Average | None, x: Tensor) -> Average:
        others = [dim for dim in range(x.dim()) if dim != self.axis % x.dim()]
        mean = x.mean(others) if others else x
        new = Average(mean.to(torch.float32), x.numel() // x.shape[self.axis])
        return new if state is None else self.merge(state, new)

    def merge(self, one: Average, other: Average) -> Average:
        values = one.values + other.values
        return Average(torch.lerp(one.mean, other.mean, other.values / values), values)


@dataclass(frozen=True)
class BiasCorrection(WeightMethod):
    """The mean of a layer's output is what it was before its weights were rounded.

    Layers that are not static have to have a bias already: an addition more would cost them time.

    Example:
        >>> layer = torch.nn.Linear(8, 8)
        >>> q = octavo.quantize(layer, calibration=[torch.rand(32, 8)])  # corrects by default
        >>> q.provenance["weights"]
        'bias_correction'
    """

    name: ClassVar[str] = "bias_correction"

    def fits(self, layer: Layer) -> bool:
        return layer.takes_bias and (layer.runs == "int8" or layer.bias is not None)

    def statistic(self, layer: Layer) -> Mean:
        assert layer.layout.input_axis is not None
        return Mean(layer.layout.input_axis)

    def bias(self, layer: Layer, now: Rounded, seen: Average) -> Tensor:
        groups = groups_of(layer.node)
        error = _error(layer, dequantized(now.integers, now.qparams) - layer.weight, groups)
        shift = bias_correction(error, seen.mean.to(error), groups)
        return (0.0 if now.bias is None else now.bias) - shift


def with_correction(weights: Sequence[WeightMethod], wanted: bool) -> tuple[WeightMethod, ...]:
    """The methods, and behind them bias correction if it is wanted and not among them.

    Args:
        weights: in the order in which they apply.
        wanted: not where there is no data to see means on.
    """
    among = any(isinstance(method, BiasCorrection) for method in weights)
    return (*weights, BiasCorrection()) if wanted and not among else tuple(weights)


def input_means(
    graph: Graph, plan: Plan, statistics: Mapping[tuple[str, Any], Any]
) -> dict[str, Tensor]:
    """Layer whose bias can be corrected -> mean of each input channel, float32 ``[in]``, if it was
    measured.
    """
    method = BiasCorrection()
    fitting = [layer for layer in quantized_layers(graph, plan) if method.fits(layer)]
    keys = {layer.name: (layer.input or "", method.statistic(layer)) for layer in fitting}
    return {name: statistics[key].mean for name, key in keys.items() if key in statistics}


def bias_correction(error: Tensor, input_mean: Tensor, groups: int = 1) -> Tensor:
    """What to subtract from the bias.

    At the border of a padded convolution the mean is a little off, since it is taken over the input
    without the padding.

    Args:
        error: rounded weight minus weight, float ``[out, in / groups, *kernel]``.
        input_mean: mean of each input channel, float ``[in]``.
        groups: of a convolution.

    Returns:
        Float ``[out]``.

    Example:
        >>> bias_correction(torch.tensor([[0.5, -0.25]]), torch.tensor([2.0, 4.0]))
        tensor([0.])
    """
    out = error.shape[0]
    per_input = error.reshape(out, error.shape[1], -1).sum(2)
    means = input_mean.reshape(groups, -1).repeat_interleave(out // groups, 0)
    return (per_input * means).sum(1)


_BY_NAME = of(Mapping, way_out="give a dict by names, as octavo.calibrate returns it")


def correct_biases(
    graph: Graph, qparams: Mapping[str, QParams], input_means: Mapping[str, Tensor]
) -> Graph:
    """The float graph with biases that take back what rounding its weights will shift.

    Args:
        graph: the canonical float graph; it is left as it is.
        qparams: of the weights, by name; a layer whose weight has none keeps its bias.
        input_means: node -> mean of each input channel, float ``[in]``, from `octavo.calibrate`.

    Returns:
        The graph, with biases float ``[out]`` of their own.

    Raises:
        InputError: an argument is of another kind.

    Example:
        >>> graph = octavo.capture(model, images)
        >>> found = octavo.calibrate(graph, octavo.plan(graph), loader)
        >>> better = octavo.correct_biases(graph, found.qparams, found.input_means)
        >>> (better.constants["fc.bias"] - graph.constants["fc.bias"]).abs().max().item() < 0.1
        True
    """
    expect(GRAPH, graph=graph)
    expect(_BY_NAME, qparams=qparams, input_means=input_means)
    biases, method = {}, BiasCorrection()
    for node in graph.nodes:
        name = arguments(node)["weight"].name if node.name in input_means else ""
        if name in qparams:
            layer = layer_of(graph, node, "int8", name, qparams[name].scheme)
            now = Rounded(quantized(layer.weight, qparams[name]), qparams[name], layer.bias)
            if layer.takes_bias:
                biases[node.name] = method.bias(layer, now, Average(input_means[node.name], 1))
    return with_biases(graph, biases)


def _error(layer: Layer, error: Tensor, groups: int) -> Tensor:
    """The error of a weight as ``[out, in / groups, *kernel]``, for the mean output.

    A transposed convolution has the channels the other way round, and each of its outputs meets
    one in ``stride`` of the taps.
    """
    if layer.layout.output_axis == 0:
        return error
    stride: list[int] = arguments(layer.node)["stride"]
    met = math.prod(stride) if len(stride) > 1 else stride[0] ** (error.dim() - 2)
    split = error.reshape(groups, -1, *error.shape[1:]).transpose(1, 2)
    return split.flatten(0, 1) / met
