"""Transposed convolution as a plain one: oneDNN's int8 kernels in torch have no transposed kind.

With stride s each output pixel of one phase ``(row % s, column % s)`` is a convolution of the input
with every s-th tap of the kernel. All phases are output channels of one convolution, and a pixel
shuffle puts them side by side (Shi et al. 2016, "Is the deconvolution layer the same as a
convolutional layer?", arXiv:1609.07009).

Tested in tests/runtimes/torch/test_int8.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.graph.operators import arguments
from octavo.quantization.fusions import ONEDNN
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.torch.kernel import Kernel
from octavo.runtimes.torch.onednn import check_kernel, sized
from octavo.runtimes.torch.post_ops import post_op_of


def conv_transpose2d(context: Context, chain: Chain) -> Call:
    """A transposed convolution without groups and dilation, weights rearranged and packed now."""
    x_arg, weight_arg, bias, *sizes, groups, dilation = arguments(chain.layer).values()
    strides, paddings, extras = (sized(value, 2) for value in sizes)
    if groups != 1 or sized(dilation, 2) != [1, 1]:
        raise Unsupported(
            "torch has no int8 kernel for a grouped or dilated transposed convolution"
        )
    if context.caller == "package":
        raise Unsupported("a package has no integer kernel for conv_transpose2d")
    stride = strides[0]
    if strides[1] != stride or any(e > p for e, p in zip(extras, paddings, strict=True)):
        raise Unsupported(f"its stride {strides} and output padding {extras} are unusual")
    x, source = context.source(x_arg)
    weight, scale = context.weight(weight_arg, output_axis=1)
    phases = phase_weights(weight, stride)
    check_kernel(source, phases)
    taps = [size - 1 for size in phases.shape[2:]]
    packed_geometry = ([1, 1], taps, [1, 1], 1)
    scales = scale.repeat_interleave(stride**2)
    meta = context.graph.metas[x_arg.name]
    shape = None if meta is None else [1 if size is None else size for size in meta.shape]
    packed = torch.ops.onednn.qconv_prepack(
        phases, scales, source.scale, source.zero_point, *packed_geometry, shape
    )
    zero_points = torch.zeros(len(scales), dtype=torch.int32)
    biases = None if bias is None else context.graph.constants[bias.name]
    repeated = None if biases is None else biases.repeat_interleave(stride**2)
    post_op, out = post_op_of(chain, "conv2d", source.scale * scale)
    product = post_op.after(torch.ops.onednn.qconv2d_pointwise.default)
    operands = (source.scale, source.zero_point, packed, scales, zero_points, repeated)
    longer = [k + e - 2 * p for k, e, p in zip(weight.shape[2:], extras, paddings, strict=True)]

    def kernel(q: Tensor) -> Tensor:
        parts = product(q, *operands, *packed_geometry, *out, *post_op.native)
        whole = F.pixel_shuffle(parts, stride)
        for dim, (padding, extra) in enumerate(zip(paddings, longer, strict=True), start=2):
            whole = whole.narrow(dim, padding, (q.shape[dim] - 1) * stride + extra)
        return whole.contiguous(memory_format=torch.channels_last)

    return Call("onednn.qconv2d as conv_transpose2d", kernel, (x,))


def phase_weights(weight: Tensor, stride: int) -> Tensor:
    """``[in, out, kh, kw]`` as the weights of a plain convolution, ``[out * stride**2, in, ...]``.

    Output channel ``(o * stride + row) * stride + column`` makes that phase of channel o, which is
    the order of a pixel shuffle. Taps that a phase lacks are zero.
    """
    missing = [-size % stride for size in weight.shape[2:]]
    padded = F.pad(weight, [0, missing[1], 0, missing[0]])
    inputs, outputs, height, width = padded.shape
    taps = padded.reshape(inputs, outputs, height // stride, stride, width // stride, stride)
    phases = taps.permute(1, 3, 5, 0, 2, 4).flip(4, 5)
    return phases.reshape(-1, inputs, height // stride, width // stride).contiguous()


KERNELS = (Kernel(("conv_transpose2d",), conv_transpose2d, fusion=ONEDNN["conv_transpose2d"]),)
