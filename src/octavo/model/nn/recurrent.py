"""LSTM, GRU, RNN and their cells: weights in integers, the input rounded at each call if dynamic.

The state stays float. Weights are dequantized where they are used.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from octavo.model.nn.dequantizing import Dequantizing


class Recurrent(Dequantizing):
    """A recurrent layer or cell; it takes tensors and, but for cells, packed sequences."""

    settings: ClassVar[tuple[str, ...]] = ("input_size", "hidden_size", "bias")

    def compute(self, input: Any, hx: Any = None) -> Any:
        packed = isinstance(input, PackedSequence)
        values = input.data if packed else input
        rounded = self.rounded(values.to(torch.float32))
        states = pytree.tree_map_only(Tensor, lambda state: state.to(torch.float32), hx)
        result = self.float_layer()(input._replace(data=rounded) if packed else rounded, states)
        return pytree.tree_map_only(Tensor, lambda x: _like(x, values), result)


def _like(result: Tensor, values: Tensor) -> Tensor:
    """A result in the dtype of the input; the sizes of a packed sequence are integers."""
    return result.to(values.dtype) if result.is_floating_point() else result


_LAYER = (*Recurrent.settings, "num_layers", "batch_first", "dropout", "bidirectional")


class LSTM(Recurrent):
    """A quantized ``nn.LSTM``.

    Example:
        >>> import octavo
        >>> lstm = LSTM.from_float(nn.LSTM(8, 16), octavo.dynamic_qconfig())
        >>> lstm(torch.rand(5, 2, 8))[0].shape
        torch.Size([5, 2, 16])
    """

    floats = nn.LSTM
    operator = "lstm"
    settings = (*_LAYER, "proj_size")


class GRU(Recurrent):
    """A quantized ``nn.GRU``."""

    floats = nn.GRU
    operator = "gru"
    settings = _LAYER


class RNN(Recurrent):
    """A quantized ``nn.RNN``."""

    floats = nn.RNN
    operator = "rnn_tanh"
    settings = (*_LAYER, "nonlinearity")


class LSTMCell(Recurrent):
    """A quantized ``nn.LSTMCell``."""

    floats = nn.LSTMCell
    operator = "lstm_cell"


class GRUCell(Recurrent):
    """A quantized ``nn.GRUCell``."""

    floats = nn.GRUCell
    operator = "gru_cell"


class RNNCell(Recurrent):
    """A quantized ``nn.RNNCell``."""

    floats = nn.RNNCell
    operator = "rnn_tanh_cell"
    settings = (*Recurrent.settings, "nonlinearity")
