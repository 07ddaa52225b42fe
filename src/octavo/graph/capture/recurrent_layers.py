"""Recurrent layers stay whole while ``torch.export`` looks at a model.

torch finds out what an LSTM, GRU or RNN returns by going through it step by step, without values,
so that exporting takes time in proportion to the length of the sequences. Here other operators
stand in for them, with the same arguments, whose results have sizes by one rule. Afterwards the
program calls torch's own again, as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from octavo.graph.checked_operators import check_recurrent

_LIBRARY = torch.library.Library("octavo_capture", "DEF")


def _stand_in(layer: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """An operator that takes the same arguments and is one step to torch, not one for each time."""
    name = layer._schema.name.removeprefix("aten::")
    _LIBRARY.define(str(layer._schema).removeprefix("aten::").replace(".input", "", 1))
    _LIBRARY.impl(name, layer, "CompositeExplicitAutograd")  # where export computes constants

    def sizes(*args: Any) -> tuple[Tensor, ...]:
        check_recurrent(name, *args)
        return _results(*args)

    torch.library.register_fake(f"octavo_capture::{name}", sizes, lib=_LIBRARY)
    overload: torch._ops.OpOverload = getattr(torch.ops.octavo_capture, name).default
    return overload


def _results(input: Tensor, hx: Any, params: Any, *settings: Any) -> tuple[Tensor, ...]:
    """Tensors as a layer returns them, without values: its output, and its last states."""
    bidirectional, batch_first = settings[-2:]
    states = [hx] if isinstance(hx, Tensor) else hx
    by_time = input.transpose(0, 1) if batch_first else input
    steps, batch, width = *by_time.shape[:2], states[0].shape[2]
    output = input.new_empty([steps, batch, (1 + bidirectional) * width])
    output = output.transpose(0, 1) if batch_first else output
    return (output, *(state.new_empty(state.shape) for state in states))


_LAYERS: dict[Callable[..., Any], torch._ops.OpOverload] = {
    torch.lstm: torch.ops.aten.lstm.input,
    torch.gru: torch.ops.aten.gru.input,
    torch.rnn_tanh: torch.ops.aten.rnn_tanh.input,
    torch.rnn_relu: torch.ops.aten.rnn_relu.input,
}
_STAND_INS = {function: _stand_in(layer) for function, layer in _LAYERS.items()}
_STOOD_FOR = {_STAND_INS[function]: layer for function, layer in _LAYERS.items()}


class WholeRecurrentLayers(TorchFunctionMode):
    """Inside, in this thread, stand-ins are called where a model calls recurrent layers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _STAND_INS and not kwargs and _is_plain(*args):
            return _STAND_INS[func](*args)
        return func(*args, **(kwargs or {}))


def _is_plain(input: Tensor, *rest: Any) -> bool:
    """Whether the sequences are padded, not packed, and no other dtype is cast to."""
    is_padded = isinstance(rest[2], bool)
    return is_padded and not torch.is_autocast_enabled(input.device.type)


def recall(program: ExportedProgram) -> None:
    """Let the program call the recurrent layers themselves, in place of what stood in for them."""
    for node in program.graph.nodes:
        node.target = _STOOD_FOR.get(node.target, node.target)
    program.graph_module.recompile()
