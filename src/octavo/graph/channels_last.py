"""Images in the order of memory that convolutions like best.

Tested in tests/quantization/test_calibrate.py and tests/measuring/layers/test_layer_errors.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS


def channels_last(tensor: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` with the channels of a pixel side by side; others as they are.

    int8 kernels give theirs like that, so that none has to be copied for a comparison.
    """
    if tensor.dim() != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


def with_weights_last(graph: Graph) -> Graph:
    """The graph with the weights of its convolutions in that order, as copies: else each call
    makes them.
    """
    weights = {
        name
        for node in graph.nodes
        if node.short_op == "conv2d"
        for name in WEIGHT_LAYOUTS["conv2d"].weights_of(node, graph.constants)
    }
    ordered = {n: channels_last(t) if n in weights else t for n, t in graph.constants.items()}
    return replace(graph, constants=ordered)
