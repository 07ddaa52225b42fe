"""Convolutions and linear layers on uint8: ``octavo_convolve`` of the library.

Images are in channels-last memory, ``[batch, height, width, channels]``; the rows of a linear layer
are pixels of an image.

Tested in tests/runtimes/native/test_convolution.py.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes import saturation

MOST_PRODUCTS = 2**16  # of a window, so that their sum fits into 32 bits


class Activation(IntEnum):
    """As native/octavo.h counts them."""

    NONE = 0
    CLIP = 1
    HARDSWISH = 2
    HARDSIGMOID = 3
    SILU = 4
    SIGMOID = 5
    GELU = 6
    GELU_TANH = 7
    TANH = 8
    RELU = 9  # which keeps NaN


class ShapeStruct(ctypes.Structure):
    """``octavo_shape`` of native/octavo.h."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels"))


class OperandsStruct(ctypes.Structure):
    """``octavo_operands``, which a program fills in."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("x", "other", "y", "scratch"))


class EpilogueStruct(ctypes.Structure):
    """``octavo_epilogue``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scales", "bias", "addend")),
        ("addend_scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("addend_zero_point", "activation")),
        *((name, ctypes.c_float) for name in ("low", "high", "out_scale")),
        *((name, ctypes.c_int32) for name in ("out_zero_point", "out_low", "out_high")),
    )


class ConvolutionStruct(ctypes.Structure):
    """``octavo_convolution``."""

    _fields_ = (
        ("at", OperandsStruct),
        *((name, ShapeStruct) for name in ("input", "output")),
        *(
            (name, ctypes.c_int64)
            for name in ("groups", "kernel_height", "kernel_width", "stride_y", "stride_x")
        ),
        *((name, ctypes.c_int64) for name in ("padding_top", "padding_left")),
        *((name, ctypes.c_int64) for name in ("dilation_y", "dilation_x")),
        *((name, ctypes.c_int32) for name in ("in_zero_point", "narrow")),
        *((name, ctypes.c_void_p) for name in ("weights", "weight_sums")),
        ("epilogue", EpilogueStruct),
    )


@dataclass(frozen=True)
class Geometry:
    """How windows lie: pairs are of rows and columns, ``padding`` is above, left, below, right."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, *self.kernel, self.in_channels // self.groups

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result; below 1 where no window fits."""
        top, left, bottom, right = self.padding
        whole = (height + top + bottom, width + left + right)
        sizes = zip(whole, self.kernel, self.stride, self.dilation, strict=True)
        high, wide = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes)
        return high, wide


@dataclass(frozen=True)
class Epilogue:
    """What becomes of a layer's sums: scaled, biased, added to, activated and rounded.

    Attributes:
        scales: float32 ``[out channels]``: the input's scale times those of the weight.
        bias: float32 likewise.
        addend: scale and zero point of what is added, if anything is.
        clip: what `Activation.CLIP` cuts to.
        out_scale: of the result; 0 where it is float32.
        out_zero_point, out_low, out_high: the integers that it is stored as.
    """

    scales: Tensor
    bias: Tensor
    addend: tuple[float, int] | None = None
    activation: Activation = Activation.NONE
    clip: tuple[float, float] = (0.0, 0.0)
    out_scale: float = 0.0
    out_zero_point: int = 0
    out_low: int = 0
    out_high: int = 255


@dataclass(frozen=True)
class Convolution:
    """A layer whose weights are packed.

    Attributes:
        weights: int8, from `pack`.
        weight_sums: int32 ``[out channels]``, of each channel's weights.
        narrow: whether any two products of a result sum within 16 bits, as a CPU without VNNI
            sums them faster.
    """

    geometry: Geometry
    weights: Tensor
    weight_sums: Tensor
    in_zero_point: int
    epilogue: Epilogue
    narrow: bool = False

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        weight: Tensor,
        in_zero_point: int,
        epilogue: Epilogue,
        in_high: int = 255,
    ) -> Convolution:
        """Of int8 ``[out channels, kernel height, kernel width, in channels / groups]``, for images
        of integers up to ``in_high``.

        Raises:
            ValueError: shapes or types do not fit each other, or sums may not fit into 32 bits.
        """
        channels = (geometry.out_channels,)
        expected = {
            (torch.int8, geometry.weight_shape): weight,
            (torch.float32, channels): epilogue.scales,
        }
        if epilogue.bias.dtype != torch.float32 or epilogue.bias.shape != channels:
            raise ValueError(f"a bias of {epilogue.bias.dtype}{list(epilogue.bias.shape)}")
        for (dtype, shape), tensor in expected.items():
            if tensor.dtype != dtype or tensor.shape != shape or tensor.device.type != "cpu":
                found = f"{tensor.dtype}{list(tensor.shape)}"
                raise ValueError(f"{found} where {dtype}{list(shape)} is expected")
        if geometry.in_channels % geometry.groups or geometry.out_channels % geometry.groups:
            raise ValueError(f"{geometry.groups} groups do not divide the channels")
        if weight[0].numel() > MOST_PRODUCTS:
            raise ValueError(f"{weight[0].numel()} products in a sum, of which it takes 65536")
        scales, bias = epilogue.scales.contiguous(), epilogue.bias.contiguous()
        epilogue = replace(epilogue, scales=scales, bias=bias)
        sums = weight.sum((1, 2, 3), dtype=torch.int32)
        narrow = not saturation.overflows(weight, in_high)
        return cls(geometry, pack(geometry, weight), sums, in_zero_point, epilogue, narrow)

    def struct(self, batch: int, height: int, width: int) -> ConvolutionStruct:
        """For images of that size; where they, the result and scratch memory are is not in it."""
        geometry, epilogue = self.geometry, self.epilogue
        scale, zero_point = epilogue.addend or (0.0, 0)
        low, high = epilogue.clip
        made = _struct(geometry, batch, height, width)
        made.in_zero_point, made.narrow = self.in_zero_point, self.narrow
        made.weights = self.weights.data_ptr()
        made.weight_sums = self.weight_sums.data_ptr()
        made.epilogue = EpilogueStruct(
            scales=epilogue.scales.data_ptr(),
            bias=epilogue.bias.data_ptr(),
            addend_scale=scale,
            addend_zero_point=zero_point,
            activation=epilogue.activation,
            low=low,
            high=high,
            out_scale=epilogue.out_scale,
            out_zero_point=epilogue.out_zero_point,
            out_low=epilogue.out_low,
            out_high=epilogue.out_high,
        )
        return made

    def __call__(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """The layer's result ``[batch, height, width, out channels]``, uint8 or float32.

        Args:
            x: uint8 ``[batch, height, width, in channels]``.
            addend: uint8 of the result's shape, where the epilogue adds one.

        Raises:
            ValueError: shapes or types do not fit each other.
        """
        batch, *size, channels = x.shape if x.dim() == 4 else (0, 0, 0, 0)
        high, wide = self.geometry.output(*size)
        if x.dtype != torch.uint8 or x.device.type != "cpu" or min(batch, high, wide) < 1:
            raise ValueError(f"images of {x.dtype}{list(x.shape)} for {self.geometry}")
        if channels != self.geometry.in_channels:
            raise ValueError(f"images of {channels} channels for {self.geometry}")
        shape = (batch, high, wide, self.geometry.out_channels)
        if (addend is None) != (self.epilogue.addend is None) or (
            addend is not None and (addend.shape != shape or addend.dtype != torch.uint8)
        ):
            raise ValueError("an addend that is not the layer's")
        result = torch.empty(shape, dtype=torch.uint8 if self.epilogue.out_scale else torch.float32)
        step, threads = self.struct(batch, *size), torch.get_num_threads()
        scratch = torch.empty(scratch_size(step, chunks(step, threads)), dtype=torch.uint8)
        x = x.contiguous()
        step.at = OperandsStruct(x.data_ptr(), None, result.data_ptr(), scratch.data_ptr())
        if addend is not None:
            addend = addend.contiguous()
            step.epilogue.addend = addend.data_ptr()
        _library().octavo_convolve_in_threads(ctypes.byref(step), threads)
        return result


def pack(geometry: Geometry, weight: Tensor) -> Tensor:
    """Weights in the order in which the kernels read them, whatever the size of images."""
    step = _struct(geometry, 1, 1, 1)
    size = _library().octavo_packed_size(ctypes.byref(step))
    packed, weight = torch.empty(size, dtype=torch.int8), weight.contiguous()
    _library().octavo_pack_convolution(ctypes.byref(step), *_pointers(weight, packed))
    return packed


def unpack(geometry: Geometry, packed: Tensor) -> Tensor:
    """What `pack` was given."""
    weight = torch.empty(geometry.weight_shape, dtype=torch.int8)
    step = _struct(geometry, 1, 1, 1)
    _library().octavo_unpack_convolution(ctypes.byref(step), *_pointers(packed, weight))
    return weight


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def chunks(step: ConvolutionStruct, threads: int) -> int:
    """Into how many chunks a call is cut for so many threads."""
    return int(_library().octavo_convolution_chunks(ctypes.byref(step), threads))


def scratch_size(step: ConvolutionStruct, chunks: int) -> int:
    """Bytes of memory that so many chunks need beside input and result."""
    return int(_library().octavo_scratch_size(ctypes.byref(step), chunks))


def _struct(geometry: Geometry, batch: int, height: int, width: int) -> ConvolutionStruct:
    top, left, _, _ = geometry.padding
    return ConvolutionStruct(
        OperandsStruct(),
        ShapeStruct(batch, height, width, geometry.in_channels),
        ShapeStruct(batch, *geometry.output(height, width), geometry.out_channels),
        geometry.groups,
        *geometry.kernel,
        *geometry.stride,
        top,
        left,
        *geometry.dilation,
    )


def _library() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError("Octavo's own kernels are not in this installation")
    loaded.octavo_packed_size.restype = ctypes.c_int64
    loaded.octavo_scratch_size.restype = ctypes.c_int64
    return loaded
