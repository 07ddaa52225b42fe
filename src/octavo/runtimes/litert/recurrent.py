"""LSTM, GRU and RNN layers and cells, step by step, in float from integer weights.

LiteRT's own operator for an LSTM keeps its states from call to call, rounds weights by one scale,
and knows no GRU.

Tested in tests/runtimes/litert/test_recurrent.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import weight_behind
from octavo.runtimes.litert.flatbuffer import Quantization
from octavo.runtimes.litert.shapes import part
from octavo.runtimes.litert.values import FLOAT, Form, Value
from octavo.runtimes.litert.writer import Converter, Writer

# From what an input and a state give, to the new states; the first one is the result.
Step = Callable[[Writer, Value, Value, list[Value]], list[Value]]


@dataclass(frozen=True)
class _Kind:
    """A kind of layer.

    Attributes:
        step: what it does with a step.
        gates: for each gate as `step` wants them, which of torch's it is.
        states: tensors that go from step to step.
        biases_together: whether the bias of the states adds to that of the input.
    """

    step: Step
    gates: tuple[int, ...]
    states: int = 1
    biases_together: bool = True


def _lstm(w: Writer, x: Value, h: Value, states: list[Value]) -> list[Value]:
    """Gates: input, forget, output, cell."""
    size = states[0].shape[-1]
    sums = _op(w, "ADD", x, h)
    gates = _op(w, "LOGISTIC", part(w, sums, 1, 0, 3 * size))
    cell = _op(w, "TANH", part(w, sums, 1, 3 * size, size))
    enter, keep, leave = (part(w, gates, 1, index * size, size) for index in range(3))
    cell = _op(w, "ADD", _op(w, "MUL", keep, states[1]), _op(w, "MUL", enter, cell))
    return [_op(w, "MUL", leave, _op(w, "TANH", cell)), cell]


def _gru(w: Writer, x: Value, h: Value, states: list[Value]) -> list[Value]:
    """Gates: reset, update, new."""
    size = states[0].shape[-1]
    two = 2 * size
    sums = _op(w, "ADD", part(w, x, 1, 0, two), part(w, h, 1, 0, two))
    gates = _op(w, "LOGISTIC", sums)
    reset, update = (part(w, gates, 1, index * size, size) for index in range(2))
    of_state = _op(w, "MUL", reset, part(w, h, 1, two, size))
    new = _op(w, "TANH", _op(w, "ADD", part(w, x, 1, two, size), of_state))
    return [_op(w, "ADD", new, _op(w, "MUL", update, _op(w, "SUB", states[0], new)))]


def _rnn(kind: str) -> Step:
    return lambda w, x, h, states: [_op(w, kind, _op(w, "ADD", x, h))]


_KINDS = {
    "lstm": _Kind(_lstm, (0, 1, 3, 2), 2),  # torch: input, forget, cell, output
    "gru": _Kind(_gru, (0, 1, 2), biases_together=False),
    "rnn_tanh": _Kind(_rnn("TANH"), (0,)),
    "rnn_relu": _Kind(_rnn("RELU"), (0,)),
}
_OPTIONS = {"ADD": "AddOptions", "MUL": "MulOptions", "SUB": "SubOptions"}


def _op(w: Writer, kind: str, *inputs: Value) -> Value:
    return w.op(kind, inputs, inputs[0].shape, FLOAT, _OPTIONS.get(kind))


def _layer(kind: _Kind) -> Converter:
    def write(w: Writer, node: Node) -> Value:
        x, states, params, has_bias, layers, _, _, both, batch_first = arguments(node).values()
        directions, each = 1 + bool(both), 4 if has_bias else 2
        if len(params) != layers * directions * each:
            raise ExportError("it has projections; LiteRT's form has none: use nn.Linear after it")
        starts = [_rows(w, state) for state in _listed(states)]
        value = w.read_floats(x, last=False)
        if batch_first:
            value = w.transposed(value, [1, 0, 2])
        steps = _unstacked(w, value)
        finals: list[list[Value]] = [[] for _ in range(kind.states)]
        for layer in range(layers):
            results = []
            for direction in range(directions):
                index = layer * directions + direction
                own = params[index * each : (index + 1) * each]
                order = steps[::-1] if direction else steps
                made, last = _run(w, kind, order, own, [start[index] for start in starts])
                results.append(made[::-1] if direction else made)
                for final, state in zip(finals, last, strict=True):
                    final.append(state)
            steps = [_side_by_side(w, step) for step in zip(*results, strict=True)]
        whole = _stacked(w, steps)
        if batch_first:
            whole = w.transposed(whole, [1, 0, 2])
        for index, result in enumerate([whole, *(_stacked(w, final) for final in finals)]):
            w.keep(w.result_of(node.name, index), result)
        return whole

    return write


def _cell(kind: _Kind) -> Converter:
    def write(w: Writer, node: Node) -> Value:
        x, states, *params = node.args
        starts = [w.read_floats(state, last=False) for state in _listed(states)]
        given = [param for param in params if param is not None]
        _, last = _run(w, kind, [w.read_floats(x, last=False)], given, starts)
        for index, state in enumerate(last):
            w.keep(w.result_of(node.name, index), state)
        return last[0]

    return write


def _run(
    w: Writer, kind: _Kind, steps: Sequence[Value], params: Sequence[Any], starts: list[Value]
) -> tuple[list[Value], list[Value]]:
    """The results of all steps in one direction, and the last states."""
    matrix, recurrence = (_matrix(w, kind, ref) for ref in params[:2])
    first, second = _biases(w, kind, params[2:], matrix.shape[0])
    states, results = starts, []
    for step in steps:
        x, h = _product(w, step, matrix, first), _product(w, states[0], recurrence, second)
        states = kind.step(w, x, h, states)
        results.append(states[0])
    return results, states


def _product(w: Writer, x: Value, matrix: Value, bias: Value | None) -> Value:
    shape = [x.shape[0], matrix.shape[0]]
    return w.op("FULLY_CONNECTED", [x, matrix, bias], shape, FLOAT, "FullyConnectedOptions")


def _order(kind: _Kind, count: int) -> Tensor:
    """The rows of a matrix, gate by gate as a step wants them."""
    size = count // len(kind.gates)
    return torch.cat([torch.arange(gate * size, (gate + 1) * size) for gate in kind.gates])


def _matrix(w: Writer, kind: _Kind, ref: Ref) -> Value:
    """A matrix in a step's order of gates; integers are made floats when the file is loaded."""
    weight = weight_behind(w.graph, ref)
    if weight is None or weight.grouped or not weight.symmetric or not weight.signed:
        tensor = w.tensor_of(ref)
        if tensor is None:
            raise ExportError("its weights are computed by the model")
        return w.constant(tensor[_order(kind, len(tensor))].detach().numpy(), FLOAT, ref.name)
    rows = _order(kind, weight.shape[0])
    scales = weight.scale.flatten()
    scales = scales[rows] if len(scales) > 1 else scales
    numbers = Quantization(tuple(scales.tolist()), (0,) * len(scales))
    dtype = "int8" if weight.unpack is None else "int4"
    integers = w.constant(weight.integers[rows].numpy(), Form(dtype, numbers), weight.name)
    return w.requantized(integers, FLOAT)


def _biases(
    w: Writer, kind: _Kind, refs: Sequence[Any], count: int
) -> tuple[Value | None, Value | None]:
    if not refs:
        return None, None
    tensors = [w.tensor_of(ref) for ref in refs]
    rows = _order(kind, count)
    first, second = (np.zeros(count) if t is None else t[rows].detach().numpy() for t in tensors)
    if kind.biases_together:
        return w.constant(first + second, FLOAT, refs[0].name), None
    return w.constant(first, FLOAT, refs[0].name), w.constant(second, FLOAT, refs[1].name)


def _listed(states: Any) -> list[Any]:
    return list(states) if isinstance(states, list | tuple) else [states]


def _rows(w: Writer, state: Any) -> list[Value]:
    """The first axis of a tensor, a value for each index."""
    return _unstacked(w, w.read_floats(state, last=False))


def _unstacked(w: Writer, value: Value) -> list[Value]:
    count, *rest = value.shape
    if count == 1:
        return [w.reshaped(value, rest)]
    return w.ops(
        "UNPACK", [value], [rest] * count, [FLOAT] * count, "UnpackOptions", num=count, axis=0
    )


def _stacked(w: Writer, values: Sequence[Value]) -> Value:
    shape = [len(values), *values[0].shape]
    if len(values) == 1:
        return w.reshaped(values[0], shape)
    count = len(values)
    return w.op("PACK", list(values), shape, FLOAT, "PackOptions", valuesCount=count, axis=0)


def _side_by_side(w: Writer, values: Sequence[Value]) -> Value:
    """The results of both directions in one step."""
    if len(values) == 1:
        return values[0]
    shape = [values[0].shape[0], sum(value.shape[1] for value in values)]
    return w.op("CONCATENATION", list(values), shape, FLOAT, "ConcatenationOptions", axis=1)


CONVERTERS: dict[str, Converter] = {
    **{name: _layer(kind) for name, kind in _KINDS.items()},
    **{f"{name}_cell": _cell(kind) for name, kind in _KINDS.items()},
}
