"""A graph that takes uint8 pixels: its image input is normalized by its own first nodes.

They are put into the quantized graph, as conversion's last step: what is planned and calibrated are
the floats that the model was written for, under the name that its input has.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.errors import InputError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.pixels import Pixels


def take_pixels(graph: Graph, pixels: Pixels) -> Graph:
    """The graph with uint8 in place of its image input, the first float32 one of four dimensions.

    Whatever read the input reads ``x.to(float32) * factor + offset`` instead.

    Raises:
        InputError: there is no such input, or mean or std is for another number of channels.
    """
    image = _with_channels(_image_input(graph))
    shape, device = image.meta.shape, next((t.device for t in graph.constants.values()), None)
    constants = [constant.to(device) for constant in pixels.constants(image.sizes[1])]
    floats, factor, scaled, offset, normalized = _new_names(graph, image.name)
    nodes = (
        Node(floats, "aten.to.dtype", (Ref(image.name), torch.float32), meta=image.meta),
        Node(scaled, "aten.mul.Tensor", (Ref(floats), Ref(factor)), meta=image.meta),
        Node(normalized, "aten.add.Tensor", (Ref(scaled), Ref(offset)), meta=image.meta),
    )
    uint8_image = replace(image, meta=TensorMeta(shape, "uint8"), seen=None)
    names = {image.name: normalized}
    return replace(
        graph,
        inputs=tuple(uint8_image if one.name == image.name else one for one in graph.inputs),
        constants={**graph.constants, factor: constants[0], offset: constants[1]},
        nodes=(*nodes, *(node.renamed(names) for node in graph.nodes)),
    ).returning(names)


def _image_input(graph: Graph) -> Input:
    for entry in graph.inputs:
        shape = entry.meta.shape
        if len(shape) == 4 and entry.meta.dtype == "float32":
            return entry
    inputs = ", ".join(f"{entry.name!r} {entry}" for entry in graph.inputs)
    raise InputError(
        "the model has no image input, float32 [N, channels, height, width]: it takes "
        f"{inputs or 'nothing'}; leave input_scale, input_mean and input_std out"
    )


def _with_channels(image: Input) -> Input:
    """With as many channels as in the example: each has a mean."""
    batch, _, *space = image.meta.shape
    meta = replace(image.meta, shape=(batch, image.sizes[1], *space))
    return replace(image, meta=meta, axes=(image.axes[0], "", *image.axes[2:]))


def _new_names(graph: Graph, stem: str) -> list[str]:
    """Names behind the input's; a module of the model may have the same name."""
    taken = {*graph.constants, *graph.metas}
    while True:
        parts = ("float", "factor", "scaled", "offset", "normalized")
        names = [f"{stem}.{part}" for part in parts]
        if taken.isdisjoint(names):
            return names
        stem += "_"
