"""Bias correction: rounding a layer's weights shifts the mean of its output; its bias can take that
back (Nagel et al. 2019, Data-Free Quantization, arXiv:1906.04721, section 4.2, with the means of
the inputs measured during calibration).

With ``w' = w + e`` the rounded weight, ``E[w'x] - E[wx] = e E[x]``: subtract it from the bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from octavo.arguments import expect, of
from octavo.graph.graph import GRAPH, Graph, Node, Ref
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.rewrite import Constant, Part, rewrite
from octavo.graph.weighted_layers import groups_of
from octavo.numerics.affine import QParams, fake_quantize


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
    """
    expect(GRAPH, graph=graph)
    expect(_BY_NAME, qparams=qparams, input_means=input_means)

    def corrected(node: Node) -> Iterator[Part]:
        given = arguments(node) if node.name in input_means else {}
        if given and given["weight"].name in qparams and _is_constant(given["bias"], graph):
            name, bias = given["weight"].name, given["bias"]
            weight = graph.constants[name]
            error = _error(node, fake_quantize(weight, qparams[name]) - weight)
            shift = bias_correction(error, input_means[node.name].to(error), groups_of(node))
            own = own_bias(node, graph)
            yield Constant(own, (0.0 if bias is None else graph.constants[bias.name]) - shift)
            node = with_arguments(node, bias=Ref(own))
        yield node

    return rewrite(graph, corrected)


def _error(node: Node, error: Tensor) -> Tensor:
    """The error of a weight as ``[out, in / groups, *kernel]``, for the mean output.

    A transposed convolution has the channels the other way round, and each of its outputs meets
    one in ``stride`` of the taps.
    """
    if not node.short_op.startswith("conv_transpose"):
        return error
    groups = groups_of(node)
    stride: list[int] = arguments(node)["stride"]
    met = math.prod(stride) if len(stride) > 1 else stride[0] ** (error.dim() - 2)
    split = error.reshape(groups, -1, *error.shape[1:]).transpose(1, 2)
    return split.flatten(0, 1) / met


def _is_constant(bias: Ref | None, graph: Graph) -> bool:
    """No bias is a constant too: zero."""
    return bias is None or bias.name in graph.constants


def own_bias(node: Node, graph: Graph) -> str:
    """The name of a bias that no other layer reads: its present one, or a new one."""
    bias = arguments(node)["bias"]
    if bias is not None and len(graph.users[bias.name]) == 1:
        return str(bias.name)
    name = f"{node.name}.bias"
    return name if name not in graph.users else f"{node.name}.corrected_bias"
