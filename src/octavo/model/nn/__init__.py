"""Quantized layers that stand in the places of float ones in a model that runs as it is written.

>>> import torch, octavo
>>> layer = octavo.nn.from_float(torch.nn.Linear(8, 4), octavo.dynamic_qconfig())
>>> print(layer)
QuantizedLinear(in_features=8, out_features=4, bias=True, weights=int8 per-channel symmetric, \
input=uint8 per-token affine, at each call)
>>> octavo.nn.from_description(layer.describe(), layer.tensors()).in_features
8

Tested in tests/model/nn/test_linear.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch import nn as float_nn

from octavo.errors import ArtifactError, PlanError
from octavo.model.nn.attention import MultiheadAttention
from octavo.model.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from octavo.model.nn.embedding import Embedding, EmbeddingBag
from octavo.model.nn.experts import Experts
from octavo.model.nn.linear import Linear
from octavo.model.nn.quantized_module import QuantizedModule
from octavo.model.nn.recurrent import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from octavo.quantization.qconfig import QConfig

_ALL: tuple[type[QuantizedModule], ...] = (
    *(Linear, Embedding, EmbeddingBag, MultiheadAttention, Experts),
    *(LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell),
    *(Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d),
)
MODULES: Mapping[str, type[QuantizedModule]] = {kind.__name__: kind for kind in _ALL}


def quantized_form(layer: float_nn.Module) -> type[QuantizedModule] | None:
    """The class of `octavo.nn` that takes a float layer's place; ``None`` where there is none.

    What derives from torch's class has one where it computes what that does; see
    `QuantizedModule.takes`.

    Args:
        layer: a float layer.
    """
    return next((kind for kind in MODULES.values() if kind.takes(layer)), None)


def from_float(layer: float_nn.Module, qconfig: QConfig, target: str = "x86") -> QuantizedModule:
    """The quantized form of a float layer, see `QuantizedModule.from_float`.

    Args:
        layer: a float layer; it is left as it was.
        qconfig: dynamic or weight-only.
        target: where it will run.

    Raises:
        PlanError: there is none.
    """
    kind = quantized_form(layer)
    if kind is None:
        raise PlanError(
            f"there is no quantized form of a {type(layer).__name__}; there is one of "
            f"{', '.join(MODULES)}"
        )
    return kind.from_float(layer, qconfig, target)


def from_description(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> QuantizedModule:
    """The module that ``describe()`` described, of the tensors of its state dict.

    Args:
        description: what ``describe()`` gave, or the same from JSON.
        tensors: by the names of the state dict; they are not copied.

    Raises:
        ArtifactError: it is not such a description, or the tensors do not fit it.
    """
    kind = description.get("type")
    if not isinstance(kind, str) or kind not in MODULES:
        raise ArtifactError(f"there is no quantized module {kind!r}; one of {', '.join(MODULES)}")
    return MODULES[kind].from_description(description, tensors)


__all__ = [
    "GRU",
    "LSTM",
    "MODULES",
    "RNN",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "EmbeddingBag",
    "Experts",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "MultiheadAttention",
    "QuantizedModule",
    "RNNCell",
    "from_description",
    "from_float",
    "quantized_form",
]
