"""`QuantizedLayer`: a layer of a converted model, for those who print it and read its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.compat.quantization.fuse_modules import FusedModule
from octavo.compat.quantization.holding import held
from octavo.compat.quantization.torch_types import (
    PER_CHANNEL_AFFINE,
    PER_TENSOR_AFFINE,
    QINT8,
    QUINT8,
)
from octavo.errors import OctavoError
from octavo.numerics import octavo_operators
from octavo.numerics.affine import QParams, dequantized
from octavo.numerics.scheme import Scheme


@dataclass(frozen=True)
class QuantizedTensor:
    """An integer tensor with its scales; it has the methods that torch's quantized tensors had.

    Attributes:
        integers: the values as they are stored.
        scale, zero_point: of shape ``[]``, ``[channels]`` or ``[rows, groups]``.
        scheme: what they mean.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    scheme: Scheme

    @property
    def shape(self) -> torch.Size:
        return self.integers.shape

    @property
    def dtype(self) -> Any:
        """``torch.qint8`` or ``torch.quint8``."""
        return QINT8 if self.scheme.integers.signed else QUINT8

    def size(self, *dim: int) -> Any:
        return self.integers.size(*dim)

    def numel(self) -> int:
        return self.integers.numel()

    def element_size(self) -> int:
        """Bytes of a value."""
        return self.integers.element_size()

    def int_repr(self) -> Tensor:
        """The integers."""
        return self.integers

    def qscheme(self) -> Any:
        """``torch.per_channel_affine`` or ``torch.per_tensor_affine``."""
        return PER_TENSOR_AFFINE if self.scheme.channel_axis is None else PER_CHANNEL_AFFINE

    def q_scale(self) -> float:
        return self.scale.item()

    def q_zero_point(self) -> int:
        return int(self.zero_point.item())

    def q_per_channel_scales(self) -> Tensor:
        return self.scale

    def q_per_channel_zero_points(self) -> Tensor:
        return self.zero_point

    def q_per_channel_axis(self) -> int | None:
        return self.scheme.channel_axis

    def dequantize(self) -> Tensor:
        """The floats that the integers stand for."""
        return dequantized(self.integers, QParams(self.scale, self.zero_point, self.scheme))


class WeightReader(nn.Module):
    """What is read of a layer whose weights are integers, by torch.ao's names.

    Attributes:
        kind: what it prints as.
        about: its sizes, as the float layer prints them.
        schemes, shapes: name of a weight -> how it is quantized, and its shape.
        output: the module, and the names of its buffers, that hold scale and zero point of what
            the layer returns; ``None`` where that is float.
    """

    kind: str
    about: str
    schemes: Mapping[str, Scheme]
    shapes: Mapping[str, list[int]]
    output: tuple[nn.Module, str, str] | None

    def quantized(self, name: str) -> QuantizedTensor:
        """One of the weights.

        Raises:
            OctavoError: the layer has none of that name; one that was computed has its own.
        """
        if name not in self.schemes:
            raise OctavoError(
                f"the {name} of this {self.kind} was computed from other tensors: it is in the "
                "graph, "
                "model.octavo_model.graph.constants"
            )
        integers, scale = held(self, name), held(self, f"{name}_scale")
        zero_point = held(self, f"{name}_zero_point")
        scheme = self.schemes[name]
        if scheme.group_size is None:  # without the ones of the weight's rank, as torch has them
            form = [] if scheme.channel_axis is None else [-1]
            scale, zero_point = scale.reshape(form), zero_point.reshape(form)
        if scheme.integers.bits <= 4:
            integers = octavo_operators.unpack_int4(
                integers, self.shapes[name], scheme.integers.signed
            )
        return QuantizedTensor(integers, scale, zero_point, scheme)

    def weight(self) -> QuantizedTensor:
        """The layer's weight."""
        return self.quantized("weight")

    def bias(self) -> Tensor | None:
        """The bias, float32 ``[out]``."""
        return self._buffers.get("bias")

    @property
    def scale(self) -> float | None:
        """Of what the layer returns; ``None`` where that is float."""
        found = self._of_output()
        return float(found[0]) if found else None

    @property
    def zero_point(self) -> int | None:
        """Of what the layer returns; ``None`` where that is float."""
        found = self._of_output()
        return int(found[1]) if found else None

    def _of_output(self) -> list[Tensor]:
        """Scale and zero point of what the layer returns; nothing where that is float."""
        if self.output is None:
            return []
        owner, *names = self.output
        return [held(owner, name) for name in names]

    def _get_name(self) -> str:
        return self.kind

    def extra_repr(self) -> str:
        if self.output is None:
            return self.about
        return f"{self.about}, scale={self.scale}, zero_point={self.zero_point}"


class QuantizedLayer(WeightReader):
    """A layer of a converted model, whose graph does its work.

    Args:
        kind, about, output: see `WeightReader`.
        weights: name of a weight -> how it is quantized, and its shape.
    """

    def __init__(
        self,
        kind: str,
        about: str,
        weights: Mapping[str, tuple[Scheme, list[int]]],
        output: tuple[nn.Module, str, str] | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.about = kind, about
        self.schemes = {name: scheme for name, (scheme, _) in weights.items()}
        self.shapes = {name: shape for name, (_, shape) in weights.items()}
        self.output = output
        self.eval()

    def forward(self, *args: Any) -> Any:
        """Not for calling.

        Raises:
            OctavoError: always.
        """
        raise OctavoError(
            f"a {self.kind} runs as a part of its model: call the model; octavo.capture(layer, x) "
            "and octavo.quantize(layer, ...) take a layer alone"
        )


def refuse_other_dtypes(fn: Callable[[Tensor], Tensor]) -> None:
    """Raise for a change that ``Module.to`` would make to scales.

    Raises:
        OctavoError: it is one of dtype.
    """
    if fn(torch.empty(0)).dtype != torch.float32:
        raise OctavoError(
            "a quantized model cannot change its dtype: its scales are float32; change that of the "
            "float model before it is quantized"
        )


# Modules that become a QuantizedLayer; weights of other modules stay where they are.
LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.LSTM,
    nn.GRU,
    nn.RNN,
    nn.LSTMCell,
    nn.GRUCell,
    nn.RNNCell,
    FusedModule,
)


def name_of_kind(name: str, runs: str, with_relu: bool) -> str:
    """What torch.ao calls such a layer: ``QuantizedConvReLU2d``, ``DynamicQuantizedLinear``."""
    name = name.replace("Bn", "")
    if with_relu and "ReLU" not in name:
        bare = name.rstrip("123d")
        name = f"{bare}ReLU{name[len(bare) :]}"
    return {"int8": "Quantized", "dynamic": "DynamicQuantized"}.get(runs, "WeightOnly") + name


def about(module: nn.Module) -> str:
    """The sizes of a layer, as it prints them."""
    first = module[0] if isinstance(module, FusedModule) else module
    return first.extra_repr()
