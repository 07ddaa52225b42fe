"""Convolutions and linear layers that Octavo's own kernels run in native programs.

Tested in tests/runtimes/torch/test_native_layers.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.graph.graph import Ref
from octavo.graph.operators import arguments
from octavo.runtimes import cpu
from octavo.runtimes.integers import Integers
from octavo.runtimes.native import operations
from octavo.runtimes.native.convolution import (
    Activation,
    Convolution,
    Epilogue,
    Geometry,
    unpack,
)
from octavo.runtimes.native.planning import Operation
from octavo.runtimes.native.transposed import Transposed, Upscaling
from octavo.runtimes.native.volumes import Depth, Volume, as_images, weight_of
from octavo.runtimes.torch.chains import Chain, Context, Unsupported, bytes_of, check_bytes
from octavo.runtimes.torch.onednn import sized
from octavo.runtimes.torch.post_ops import clip_bounds

# What is done, what it is called, and what it reads.
Described = tuple[str, Operation, tuple[Ref, ...]]

_ACTIVATIONS = {
    "relu": Activation.CLIP,
    "hardtanh": Activation.CLIP,
    "hardswish": Activation.HARDSWISH,
    "hardsigmoid": Activation.HARDSIGMOID,
    "silu": Activation.SILU,
    "sigmoid": Activation.SIGMOID,
    "gelu": Activation.GELU,
    "tanh": Activation.TANH,
}


def convolution(context: Context, chain: Chain) -> Described:
    """A convolution of images or sequences, with addition and activation, weights packed now."""
    _, weight_arg, _, *sizes, groups = arguments(chain.layer).values()
    weight, scale = context.weight(weight_arg)
    (outputs, inputs, *kernel), axes = weight.shape, weight.dim() - 2
    stride, padding, dilation = (sized(value, axes) for value in sizes)
    around = _pair(padding, 0)
    geometry = Geometry(
        inputs * groups,
        outputs,
        _pair(kernel),
        _pair(stride),
        (*around, *around),
        _pair(dilation),
        groups,
    )
    if _is_quicker_in_torch(geometry):
        raise Unsupported("torch's kernel is quicker")
    return _layer(context, chain, weight, scale, geometry)


def _is_quicker_in_torch(geometry: Geometry) -> bool:
    """Whether torch's kernel beats ours by more than a call costs: groups of few outputs leave most
    of a vector empty. Measured by ``benchmarks.convolutions``.
    """
    each = geometry.out_channels // geometry.groups
    is_depthwise = geometry.groups == geometry.in_channels == geometry.out_channels
    return _torch_takes_all() and geometry.groups > 1 and not is_depthwise and each < 16


def _torch_takes_all() -> bool:
    """Whether torch's kernels are there and may not refuse the weights of a layer."""
    return cpu.missing_kernels() is None and not cpu.saturates()


def linear(context: Context, chain: Chain) -> Described:
    """A linear layer, with addition and activation, weights packed now."""
    weight, scale = context.weight(arguments(chain.layer)["weight"])
    return _layer(context, chain, weight, scale, Geometry(weight.shape[1], weight.shape[0]))


@dataclass(frozen=True)
class _Weighted:
    """What a layer with a weight reads, and what becomes of its sums."""

    read: tuple[Ref, ...]
    source: Integers
    epilogue: Epilogue

    @staticmethod
    def of(context: Context, chain: Chain, scale: Tensor) -> _Weighted:
        """Of a chain whose weight has these scales.

        Raises:
            Unsupported: something of it is not of eight bits, or its bias is computed.
        """
        node, given = chain.layer, arguments(chain.layer)
        x, source = bytes_of(context, given["input"])
        read: tuple[Ref, ...] = (x,)
        means = None
        if chain.addition is not None:
            other = next(arg for arg in chain.addition.args if arg != Ref(node.name))
            addend, means = bytes_of(context, other)
            read = (x, addend)
        given_bias = given["bias"]
        none = torch.zeros(len(scale))
        bias = none if given_bias is None else context.graph.constant(given_bias)
        if bias is None:
            raise Unsupported("its bias is computed")
        return _Weighted(read, source, _epilogue(chain, source.scale * scale, bias, means))

    def packed(self, geometry: Geometry, weight: Tensor) -> Convolution:
        """The convolution, its weights packed now.

        Raises:
            Unsupported: the kernel takes no such layer.
        """
        source = self.source
        try:
            return Convolution.of(geometry, weight, source.zero_point, self.epilogue, source.high)
        except ValueError as error:
            raise Unsupported(str(error)) from None


def _layer(
    context: Context, chain: Chain, weight: Tensor, scale: Tensor, geometry: Geometry
) -> Described:
    weighted = _Weighted.of(context, chain, scale)
    rows, weight_shape = weight.dim() == 2, weight.shape
    packed = weight[:, None, None] if rows else _as_image(weight).permute(0, 2, 3, 1)
    layer = weighted.packed(geometry, packed)

    def unpacked() -> Tensor:
        integers = unpack(geometry, layer.weights)
        if rows:
            return integers.flatten(1)
        # A copy, since those of 1x1 count as contiguous with channels last too, by which torch
        # chooses another convolution.
        whole = integers.permute(0, 3, 1, 2).reshape(weight_shape)
        return whole.clone(memory_format=torch.contiguous_format)

    context.hold(arguments(chain.layer)["weight"], unpacked)
    name = chain.layer.short_op if chain.addition is None else f"{chain.layer.short_op}.sum"
    return name, operations.Layer(layer, rows), weighted.read


def transposed(context: Context, chain: Chain) -> Described:
    """A transposed convolution of images or sequences, with activation, weights packed now."""
    given = arguments(chain.layer)
    weight, scale = context.weight(given["weight"], output_axis=1)
    (inputs, each, *kernel), axes, groups = weight.shape, weight.dim() - 2, given["groups"]
    names = "stride padding output_padding dilation".split()
    stride, padding, extra, dilation = (sized(given[name], axes) for name in names)
    if any(size != 1 for size in dilation):
        raise Unsupported("its taps are dilated")
    upscaling = Upscaling(
        inputs,
        each * groups,
        _pair(kernel),
        _pair(stride),
        _pair(padding, 0),
        _pair(extra, 0),
        groups,
    )
    weighted = _Weighted.of(context, chain, scale.repeat(groups))  # all groups have the same
    epilogue = replace(
        weighted.epilogue,
        scales=upscaling.repeated(weighted.epilogue.scales),
        bias=upscaling.repeated(weighted.epilogue.bias),
    )
    geometry, phases = upscaling.plain, upscaling.phases_of(_as_image(weight))
    layer = replace(weighted, epilogue=epilogue).packed(geometry, phases)

    def unpacked() -> Tensor:
        return upscaling.weight_of(unpack(geometry, layer.weights)).reshape(weight.shape)

    context.hold(given["weight"], unpacked)
    return chain.layer.short_op, Transposed(layer, upscaling), weighted.read


def volume(context: Context, chain: Chain) -> Described:
    """A convolution of volumes, with activation, weights packed now.

    It has the channels of several images moved side by side, which torch's need not: where that may
    not refuse the layer it takes 0.8 to 0.95 of the time. But with AMX it computes some layers
    wrongly at times (`octavo.runtimes.torch.onednn.skips_values`), and gets none.
    """
    if _torch_takes_all() and not cpu.has_amx():
        raise Unsupported("torch's kernel is quicker")
    _, weight_arg, _, *sizes, groups = arguments(chain.layer).values()
    weight, scale = context.weight(weight_arg)
    (outputs, inputs, deep, *kernel) = weight.shape
    pairs = [sized(value, 3) for value in sizes]
    stride, padding, dilation = (_pair(size[1:]) for size in pairs)
    depth = Depth(deep, *(size[0] for size in pairs))
    geometry = Geometry(
        inputs * groups * deep,
        outputs,
        _pair(kernel),
        stride,
        (*padding, *padding),
        dilation,
        groups,
    )
    weighted = _Weighted.of(context, chain, scale)
    layer = weighted.packed(geometry, as_images(weight))
    context.hold(weight_arg, lambda: weight_of(unpack(geometry, layer.weights), deep))
    return "conv3d", Volume(layer, depth), weighted.read


def _epilogue(chain: Chain, scales: Tensor, bias: Tensor, addend: Integers | None) -> Epilogue:
    """What follows a layer's sums.

    Raises:
        Unsupported: its result is not of eight bits.
    """
    kind, clip = Activation.NONE, (0.0, 0.0)
    node, out = chain.activation, chain.out
    if node is not None:
        kind = _ACTIVATIONS[node.short_op]
        if kind is Activation.CLIP:
            clip = clip_bounds(node)
        if kind is Activation.GELU and arguments(node)["approximate"] == "tanh":
            kind = Activation.GELU_TANH
    added = None if addend is None else (addend.scale, addend.zero_point)
    epilogue = Epilogue(scales.float(), bias.float(), added, kind, clip)
    if out is None:
        return epilogue
    check_bytes("result", out)
    return replace(
        epilogue,
        out_scale=out.scale,
        out_zero_point=out.zero_point,
        out_low=out.low,
        out_high=out.high,
    )


def _as_image(weight: Tensor) -> Tensor:
    """A weight with the axes of those that read images: of sequences the height is 1."""
    return weight if weight.dim() == 4 else weight.unsqueeze(2)


def _pair(sizes: Sequence[int], of_height: int = 1) -> tuple[int, int]:
    """Of height and width; a sequence has none of height."""
    height, width = sizes if len(sizes) == 2 else (of_height, *sizes)
    return height, width
