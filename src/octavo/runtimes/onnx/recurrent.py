"""LSTM, GRU and RNN layers and cells, a layer and direction at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ExportError
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import QuantizedWeight
from octavo.runtimes.onnx import loading, quantization
from octavo.runtimes.onnx.writer import MICROSOFT, Converter, Writer


@dataclass(frozen=True)
class _Kind:
    """How ONNX writes a kind of layer.

    Attributes:
        op: the operator.
        gates: for each of ONNX's gates, which of torch's it is.
        states: tensors that go from step to step.
        attributes: of the operator.
        on_integers: ONNX Runtime's operator that rounds its inputs and states at each step.
    """

    op: str
    gates: tuple[int, ...]
    states: int = 1
    attributes: tuple[tuple[str, Any], ...] = ()
    on_integers: str = ""


_KINDS = {
    # torch: i f g o, ONNX: i o f c
    "lstm": _Kind("LSTM", (0, 3, 1, 2), 2, on_integers="DynamicQuantizeLSTM"),
    "gru": _Kind("GRU", (1, 0, 2), 1, (("linear_before_reset", 1),)),  # torch: r z n, ONNX: z r h
    "rnn_tanh": _Kind("RNN", (0,)),
    "rnn_relu": _Kind("RNN", (0,), 1, (("activations", ["Relu"]),)),
}


_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})


def _rows(kind: _Kind, count: int) -> Tensor:
    """The order of a matrix's rows, gate by gate."""
    size = count // len(kind.gates)
    return torch.cat([torch.arange(gate * size, (gate + 1) * size) for gate in kind.gates])


def _weight(w: Writer, kind: _Kind, ref: Any) -> str:
    """A matrix ``[1, gates * hidden, columns]`` in ONNX's order of gates, kept as integers."""
    integers = quantization.integers_of(w, ref)
    tensor = w.tensor_of(ref) if w.dialect.integer_recurrence else quantization.floats_of(w, ref)
    if tensor is not None:
        ordered = tensor[_rows(kind, len(tensor))].unsqueeze(0)
        return w.initializer(f"{ref.name}.{kind.op}", ordered)
    if integers is not None:
        tensors = _by_rows(integers, _rows(kind, integers.shape[0]))
        names = [f"{name}.{kind.op}" for name in integers.reader.refs()]
        if w.dialect.loaded_as_floats:
            columns = (tensors[0], *(by_row.unsqueeze(-1) for by_row in tensors[1:]))
            stacked = (tensor.unsqueeze(0) for tensor in columns)
            return loading.floats(w, dict(zip(names, stacked, strict=True)))
        q, scale, zero_point = map(w.initializer, names, (tensors[0].unsqueeze(0), *tensors[1:]))
        return w.op("DequantizeLinear", q, scale, zero_point, axis=1)
    value = w.op("Gather", w.read(ref), _row_numbers(w, kind, ref), axis=0)
    return w.op("Unsqueeze", value, w.ints([0]))


def _by_rows(integers: QuantizedWeight, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of a matrix, and scale and zero point of each."""
    q, count = integers.integers, integers.shape[0]
    scale, zero_point = (v.expand(count, 1) for v in (integers.scale, integers.zero_point))
    return q[rows], scale[rows, 0], zero_point[rows, 0].to(q.dtype)


def _input(w: Writer, kind: _Kind, x: Ref, params: list[Ref]) -> tuple[Ref, bool]:
    """What a layer reads, and whether it is written on integers: it rounds its input itself then.

    The operator has one scale for all its input, and integers without zero points for weights.
    """
    source = quantization.rounded_from(w, x)
    matrices = [ref for ref in params if w.rank(ref) == 2]
    constants = [quantization.integers_of(w, ref) for ref in matrices]
    fits = all(integers is not None and integers.symmetric for integers in constants)
    if w.dialect.dynamic_lstm and kind.on_integers and source is not None and fits:
        return source, True
    return x, False


def _turned(w: Writer, kind: _Kind, refs: list[Ref]) -> list[str]:
    """Matrices ``[directions, columns, gates * hidden]`` of integers, with scales and zero points.

    Of one tensor for all directions: ONNX Runtime packs what is constant.
    """
    read = [i for ref in refs if (i := quantization.integers_of(w, ref)) is not None]
    parts = [_by_rows(integers, _rows(kind, integers.shape[0])) for integers in read]
    return [
        w.initializer(f"{name}.{kind.on_integers}", torch.stack(tensors))
        for name, tensors in zip(
            read[0].reader.refs(),
            zip(*((q.t(), scale, start) for q, scale, start in parts), strict=True),
            strict=True,
        )
    ]


def _row_numbers(w: Writer, kind: _Kind, ref: Any) -> str:
    return w.ints(_rows(kind, int(w.meta(ref).shape[0] or 0)).tolist())


def _bias(w: Writer, kind: _Kind, refs: list[Any]) -> str:
    """Both biases in one row ``[1, 2 * gates * hidden]``."""
    tensors = [w.tensor_of(ref) for ref in refs]
    if any(tensor is None for tensor in tensors):
        raise ExportError(f"{refs[0].name}: a recurrent layer's bias must be constant")
    rows = [tensor[_rows(kind, len(tensor))] for tensor in tensors if tensor is not None]
    name = f"{refs[0].name}.{kind.op}"
    return w.initializer(name, torch.cat(rows).unsqueeze(0))


def _layer(kind: _Kind) -> Converter:
    def convert(w: Writer, node: Node) -> Any:
        x, states, params, has_bias, layers, _, _, both, batch_first = arguments(node).values()
        states = states if isinstance(states, list | tuple) else [states]
        directions, each = 1 + bool(both), 4 if has_bias else 2
        if len(params) != layers * directions * each:
            raise ExportError(
                f"{node.name}: {node.op} with projections has no ONNX form; use nn.Linear after it"
            )
        x, on_integers = _input(w, kind, x, params)
        value = w.read(x)
        if batch_first:
            value = w.op("Transpose", value, perm=[1, 0, 2])
        hidden = int(w.meta(params[1]).shape[1] or 0)
        finals: list[list[str]] = [[] for _ in range(kind.states)]
        for layer in range(layers):
            span = slice(layer * directions * each, (layer + 1) * directions * each)
            starts = [_part(w, state, layer * directions, directions) for state in states]
            value, last = _one(
                w, kind, value, params[span], starts, directions, hidden, has_bias, on_integers
            )
            for final, state in zip(finals, last, strict=True):
                final.append(state)
        if batch_first:
            value = w.op("Transpose", value, perm=[1, 0, 2])
        joined = [f[0] if len(f) == 1 else w.op("Concat", *f, axis=0) for f in finals]
        return [value, *joined]

    return convert


def _part(w: Writer, state: Any, first: int, count: int) -> str:
    """The initial states of a layer's directions; "" for zeros that are left out."""
    maker = w.producer(state)
    if w.dialect.states_left_out and maker is not None and maker.short_op in _ZEROS:
        return ""
    value = w.read(state)
    if w.meta(state).shape[0] == count:
        return value
    return w.op("Slice", value, w.ints([first]), w.ints([first + count]), w.ints([0]))


def _one(
    w: Writer,
    kind: _Kind,
    x: str,
    params: list[Ref],
    starts: list[str],
    directions: int,
    hidden: int,
    has_bias: bool,
    on_integers: bool,
) -> tuple[str, list[str]]:
    """One layer: its results ``[steps, batch, directions * hidden]`` and last states."""
    each = len(params) // directions
    parts = [params[i * each : (i + 1) * each] for i in range(directions)]

    def stacked(values: list[str]) -> str:
        return values[0] if len(values) == 1 else w.op("Concat", *values, axis=0)

    scales: list[str] = []
    if on_integers:
        (matrix, *scales), (recurrence, *more) = (
            _turned(w, kind, [part[i] for part in parts]) for i in range(2)
        )
        scales = ["", *scales, *more]  # behind peepholes, which torch does not have
    else:
        matrix, recurrence = (
            stacked([_weight(w, kind, part[i]) for part in parts]) for i in range(2)
        )
    bias = stacked([_bias(w, kind, part[2:4]) for part in parts]) if has_bias else ""
    attributes = dict(kind.attributes)
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * directions
    y, *last = w.ops(
        kind.on_integers if on_integers else kind.op,
        *[x, matrix, recurrence, bias, "", *starts, *scales],
        outputs=1 + kind.states,
        domain=MICROSOFT if on_integers else "",
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
        **attributes,
    )
    if directions == 1:
        return w.op("Squeeze", y, w.ints([1])), last
    moved = w.op("Transpose", y, perm=[0, 2, 1, 3])
    return w.op("Reshape", moved, w.ints([0, 0, directions * hidden])), last


def _cell(kind: _Kind) -> Converter:
    """A cell is a layer of one step."""

    def convert(w: Writer, node: Node) -> Any:
        x, states, *params = node.args
        states = states if isinstance(states, list | tuple) else [states]
        params = [param for param in params if param is not None]
        hidden = int(w.meta(params[1]).shape[1] or 0)
        starts = [w.op("Unsqueeze", w.read(state), w.ints([0])) for state in states]
        x, on_integers = _input(w, kind, x, params)
        step = w.op("Unsqueeze", w.read(x), w.ints([0]))
        _, last = _one(w, kind, step, params, starts, 1, hidden, len(params) == 4, on_integers)
        results = [w.op("Squeeze", state, w.ints([0])) for state in last]
        return results if kind.states > 1 else results[0]

    return convert


CONVERTERS: dict[str, Converter] = {
    **{name: _layer(kind) for name, kind in _KINDS.items()},
    "lstm_cell": _cell(_KINDS["lstm"]),
    "gru_cell": _cell(_KINDS["gru"]),
    "rnn_tanh_cell": _cell(_KINDS["rnn_tanh"]),
    "rnn_relu_cell": _cell(_KINDS["rnn_relu"]),
}
