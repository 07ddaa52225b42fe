"""LSTM, GRU and RNN over packed sequences, on Octavo's own kernel.

Tested in tests/model/nn/test_packed_sequences.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from octavo.model.nn.quantized_module import QuantizedModule
from octavo.numerics.native import library
from octavo.numerics.scheme import Scheme
from octavo.runtimes.native import recurrent
from octavo.runtimes.native.matrix import MOST_COLUMNS, How, Reading


@dataclass(frozen=True)
class PackedSequences:
    """A layer's weights as the kernel reads them.

    Attributes:
        matrices: of each direction of each layer, see `recurrent.recurrent`.
        settings: the kernel's, by name.
        held: name of a weight of eight bits -> what gives its integers back.
    """

    matrices: list[Tensor]
    settings: dict[str, Any]
    held: dict[str, Callable[[], Tensor]]

    @classmethod
    def of(cls, layer: QuantizedModule, kind: str) -> PackedSequences | None:
        """``None`` where the kernel does not run the layer.

        Args:
            layer: a recurrent one.
            kind: a key of `recurrent.KINDS`.
        """
        own = layer.description.settings
        tensors, names = layer.own_tensors(), list(layer.parameter_shapes(layer.description))
        per_direction, directions = 2 + 2 * own["bias"], 1 + own.get("bidirectional", False)
        widest = max(own["input_size"], directions * own["hidden_size"])
        if library.obstacle() or own.get("proj_size") or widest > MOST_COLUMNS:
            return None
        if layer.device.type != "cpu" or not all(map(_fits, layer.description.weights.values())):
            return None
        matrices: list[Tensor] = []
        held: dict[str, Callable[[], Tensor]] = {}
        for at in range(0, len(names), per_direction):
            weights, biases = names[at : at + 2], names[at + 2 : at + per_direction]
            for index, name in enumerate(weights):
                integers = layer.weights[name].integers(tensors)
                scale = tensors[f"{name}_scale"].flatten().expand(len(integers)).contiguous()
                bias = tensors[biases[index]] if biases else None
                matrix = recurrent.packed(kind, integers, scale, bias, of_state=index == 1)
                if not layer.weights[name].packed:
                    sizes = (own["hidden_size"], integers.shape[1])
                    held[name] = partial(recurrent.unpacked, kind, matrix.weights, *sizes)
                matrices += matrix.tensors
        layout = {"kind": kind, "bidirectional": directions == 2, "batch_first": False}
        return cls(matrices, layout | vars(_reading(layer.activation)), held)

    def __call__(self, x: PackedSequence, states: Sequence[Tensor]) -> tuple[Any, ...]:
        """The values of the packed result, and the last states in the caller's order.

        Args:
            x: float32.
            states: float32 ``[layers * directions, batch, hidden]``, in the caller's order.
        """
        if x.sorted_indices is not None:
            states = [state.index_select(1, x.sorted_indices) for state in states]
        h0, c0 = states[0], states[1] if len(states) > 1 else None
        data, *ends = recurrent.recurrent(
            x.data, h0, c0, self.matrices, **self.settings, batch_sizes=x.batch_sizes
        )
        ends = ends[: len(states)]
        if x.unsorted_indices is not None:
            ends = [end.index_select(1, x.unsorted_indices) for end in ends]
        return data, *ends


def _fits(scheme: Scheme) -> bool:
    return scheme.symmetric and scheme.integers.signed and scheme.group_size is None


def _reading(scheme: Scheme | None) -> Reading:
    """How the kernel reads an input."""
    if scheme is None:
        return Reading(How.FLOATS)
    how = How.ROW_RANGE if scheme.per_token else How.TENSOR_RANGE
    return Reading(how, scheme.qmin, scheme.qmax, scheme.symmetric)
