"""Convolutions with integer weights, for those who ask for them by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import InputError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.weight_layouts import is_depthwise
from octavo.model.nn.dequantizing import Dequantizing
from octavo.model.nn.one_operator import OneOperator
from octavo.model.nn.quantized_module import QuantizedModule

_SIZES = "in_channels out_channels kernel_size stride padding dilation groups bias".split()
_BEYOND = 2  # places of a window on the example that a runtime is compared on


class _Convolution(QuantizedModule):
    """What all have in common: images ``[batch, channels, *size]``, or without a batch."""

    settings: ClassVar[tuple[str, ...]] = (*_SIZES, "padding_mode")

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def sums_pairs(cls, layer: nn.Module) -> bool:
        groups: Any = layer.groups
        return not is_depthwise(groups, layer.get_parameter("weight"))

    def images(self, input: Tensor) -> Tensor:
        """The input, float32, with a batch.

        Raises:
            InputError: it is no image of these channels.
        """
        dims = len(self.kernel_size)
        batched = input.dim() == dims + 2
        if not input.is_floating_point() or input.dim() not in (dims + 1, dims + 2):
            channels: Any = None
        else:
            channels = input.shape[batched]
        if channels != self.in_channels:
            raise InputError(
                f"a {self._get_name()} takes floats [batch, {self.in_channels}, "
                f"{', '.join(['N'] * dims)}], not {TensorMeta.of(input)}"
            )
        images = input.to(torch.float32)
        return images if batched else images.unsqueeze(0)

    def like(self, result: Tensor, input: Tensor) -> Tensor:
        """A result in the dtype of the input, with a batch if that has one."""
        batched = input.dim() == len(self.kernel_size) + 2
        return (result if batched else result.squeeze(0)).to(input.dtype)


class _Forward(_Convolution, OneOperator):
    """A convolution that is one operator of a graph; other paddings than zeros come before it."""

    def graph(self) -> Graph:
        dims, readers = len(self.kernel_size), self.weights["weight"].readers()
        meta = TensorMeta((None, self.in_channels, *[None] * dims), "float32")
        read, rounding = self.read_input(meta)
        weight, nodes = Ref(readers[-1].name), [*readers, *rounding]
        tensors = self.own_tensors()
        bias = Ref("bias") if "bias" in tensors else None
        padding = [0] * dims if self._pads_before() else list(self.padding)
        geometry = (list(self.stride), padding, list(self.dilation), self.groups)
        out = TensorMeta((None, self.out_channels, *[None] * dims), "float32")
        operator = f"aten.{self.operator}.default"
        nodes.append(Node("result", operator, (read, weight, bias, *geometry), meta=out))
        window = zip(self.kernel_size, self.dilation, strict=True)
        example = (2, self.in_channels, *(d * (k - 1) + 1 + _BEYOND for k, d in window))
        inputs = (Input("input", meta, example),)
        return Graph(inputs, tensors, tuple(nodes), {"input": Ref("input")}, [Ref("result")])

    def compute(self, input: Tensor) -> Tensor:
        images = self.images(input)
        if self._pads_before():
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            images = F.pad(images, self._around(), mode=mode)
        (result,) = self.results(images)
        return self.like(result, input)

    def _pads_before(self) -> bool:
        return self.padding_mode != "zeros" or isinstance(self.padding, str)

    def _around(self) -> list[int]:
        """Padding at both ends of each axis, the last axis first, as ``F.pad`` takes it."""
        return [size for pair in reversed(list(self._pairs())) for size in pair]

    def _pairs(self) -> Sequence[tuple[int, int]]:
        if not isinstance(self.padding, str):
            return [(size, size) for size in self.padding]
        if self.padding == "valid":
            return [(0, 0)] * len(self.kernel_size)
        totals = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]


class Conv1d(_Forward, floats=nn.Conv1d, operator="conv1d"):
    """A quantized ``nn.Conv1d``.

    Example:
        >>> import octavo
        >>> q = Conv1d.from_float(nn.Conv1d(4, 8, 3), octavo.weight_only_qconfig())
        >>> q(torch.rand(2, 4, 10)).shape
        torch.Size([2, 8, 8])
    """


class Conv2d(_Forward, floats=nn.Conv2d, operator="conv2d"):
    """A quantized ``nn.Conv2d``."""


class Conv3d(_Forward, floats=nn.Conv3d, operator="conv3d"):
    """A quantized ``nn.Conv3d``."""


class _Transposed(_Convolution, Dequantizing):
    """A transposed convolution, whose size may be given at the call."""

    settings = (*_Convolution.settings, "output_padding")

    def compute(self, input: Tensor, output_size: Any = None) -> Tensor:
        images = self.rounded(self.images(input))
        return self.like(self.float_layer()(images, output_size), input)


class ConvTranspose1d(_Transposed, floats=nn.ConvTranspose1d, operator="conv_transpose1d"):
    """A quantized ``nn.ConvTranspose1d``."""


class ConvTranspose2d(_Transposed, floats=nn.ConvTranspose2d, operator="conv_transpose2d"):
    """A quantized ``nn.ConvTranspose2d``."""


class ConvTranspose3d(_Transposed, floats=nn.ConvTranspose3d, operator="conv_transpose3d"):
    """A quantized ``nn.ConvTranspose3d``."""
