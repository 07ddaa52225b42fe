"""LSTM, GRU and RNN on int8 weights: ``octavo::recurrent``.

What the first layer reads is rounded as it is told. Where that is to eight bits, each row of
the states and of what further layers read is rounded to eight bits too, by its own range; else they
keep 16 bits. All else is float32.

Sequences are padded, or packed as ``torch.nn.utils.rnn`` packs them.

Tested in tests/runtimes/native/test_recurrent.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.matrix import (
    BLOCK,
    FOUR,
    MOST_COLUMNS,
    How,
    Matrix,
    MatrixStruct,
    Reading,
    ReadingStruct,
    unpack,
)
from octavo.runtimes.native.operators import register

# By the name of the operator: as native/octavo.h counts them, and how many gates there are.
KINDS = {"lstm": (0, 4), "gru": (1, 3), "rnn_tanh": (2, 1), "rnn_relu": (3, 1)}
# How states, and what further layers read, are rounded beside an input of integers and of floats,
# and their steps in parts of the largest value in a row.
_EIGHT_BITS, _SIXTEEN_BITS = Reading(How.ROW_RANGE, 0, 255), Reading(How.FLOATS)
STEPS = {True: 2 / 255, False: 1 / 32767}  # whether the input is rounded to eight bits
_TENSORS = 8  # of a direction: two matrices


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "reverse", "threads", "reserved")),
        ("offsets", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("steps", "batch", "inputs", "hidden")),
        ("reading", ReadingStruct),
        ("of_input", MatrixStruct),
        ("of_state", MatrixStruct),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x_step", "x_row")),
        *((name, ctypes.c_void_p) for name in ("h0", "c0", "out")),
        *((name, ctypes.c_int64) for name in ("out_step", "out_row")),
        *((name, ctypes.c_void_p) for name in ("hn", "cn")),
    )


def packed(kind: str, weight: Tensor, scale: Tensor, bias: Tensor | None, of_state: bool) -> Matrix:
    """The weights of a direction's gates, for `recurrent`.

    Args:
        kind: a key of `KINDS`.
        weight: int8 ``[gates * hidden, columns]``.
        scale: float32 ``[gates * hidden]``.
        bias: likewise.
        of_state: whether they are applied to the state, and not to the input.
    """

    def units_first(values: Tensor) -> Tensor:
        """Gates beside each other in blocks of units: ``[hidden / 16, gates, 16, ...]``."""
        gates = KINDS[kind][1]
        by_gate = values.reshape(gates, -1, *values.shape[1:])
        by_gate = F.pad(by_gate, (0, 0) * (values.dim() - 1) + (0, -by_gate.shape[1] % BLOCK))
        blocks = by_gate.reshape(gates, -1, BLOCK, *values.shape[1:])
        return blocks.transpose(0, 1).reshape(-1, *values.shape[1:]).contiguous()

    columns = F.pad(weight, (0, -weight.shape[1] % BLOCK)) if of_state else weight
    bias = torch.zeros_like(scale) if bias is None else bias
    return Matrix.of(units_first(columns), units_first(scale), units_first(bias))


def unpacked(kind: str, weights: Tensor, hidden: int, columns: int) -> Tensor:
    """The int8 weights ``[gates * hidden, columns]`` that `packed` was given."""
    gates = KINDS[kind][1]
    blocks = unpack(weights, weights.shape[0] * BLOCK, columns).reshape(-1, gates, BLOCK, columns)
    return blocks.transpose(0, 1).reshape(gates, -1, columns)[:, :hidden].reshape(-1, columns)


def recurrent(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    matrices: Sequence[Tensor],
    kind: str,
    bidirectional: bool,
    batch_first: bool,
    how: int,
    low: int,
    high: int,
    symmetric: bool,
    scale: float,
    zero_point: int,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All layers and directions; results as ``torch.lstm`` has them, without ``c`` an empty one.

    Args:
        x: ``[steps, batch, inputs]``, or with ``batch_first`` the first two turned round, or
            ``[values, inputs]`` with ``batch_sizes``; float32, or uint8 where ``how`` is
            `How.INTEGERS`.
        h0, c0: float32 ``[layers * directions, batch, hidden]``; the second for LSTM.
        matrices: `Matrix.tensors` of the input's and of the state's weights, a direction after the
            other, a layer after the other.
        kind: a key of `KINDS`.
        bidirectional: whether a layer has two directions.
        batch_first: of ``x`` and the first result.
        how, low, high, symmetric, scale, zero_point: a `Reading` of ``x``.
        batch_sizes: of a packed sequence: int64 ``[steps]``, how many sequences have each step.

    Raises:
        ValueError: shapes or types do not fit each other.
    """
    reading = Reading(How(how), low, high, symmetric, scale, zero_point)
    per_layer = 1 + bidirectional
    sizes = _Sizes.of(x, batch_first, batch_sizes)
    directions = _checked(x, h0, c0, matrices, kind, per_layer, sizes.batch, reading)
    further = _SIXTEEN_BITS if reading.how is How.FLOATS else _EIGHT_BITS
    h0, c0 = h0.contiguous(), None if c0 is None else c0.contiguous()
    hn, cn = torch.empty_like(h0), torch.empty_like(h0 if c0 is not None else h0[:0])
    x, hidden = x.contiguous(), h0.shape[2]
    for first in range(0, len(directions), per_layer):
        out = torch.empty((*x.shape[:-1], per_layer * hidden), dtype=torch.float32)
        for direction in range(per_layer):
            index = first + direction
            part = out[..., direction * hidden : (direction + 1) * hidden]
            cells = (None, None) if c0 is None else (c0[index], cn[index])
            states = (h0[index], hn[index], *cells)
            _run(x, part, states, directions[index], kind, sizes, direction == 1, reading)
        x, reading = out, further
    return x, hn, cn


@dataclass(frozen=True)
class _Sizes:
    """Of sequences: how many there are and how many steps they have; offsets of packed ones."""

    batch: int
    steps: int
    step: int | None  # its axis, beside that of the sequences, where there are two
    row: int
    offsets: Tensor | None = None

    @staticmethod
    def of(x: Tensor, batch_first: bool, batch_sizes: Tensor | None) -> _Sizes:
        """Those of ``x``.

        Raises:
            ValueError: they are not those of sequences.
        """
        if batch_sizes is None:
            step, row = (1, 0) if batch_first else (0, 1)
            if x.dim() != 3 or min(x.shape) < 1:
                raise ValueError(
                    f"sequences {list(x.shape)} where three sizes, none of them 0, are expected"
                )
            return _Sizes(x.shape[row], x.shape[step], step, row)
        sizes = batch_sizes
        if (sizes.dtype, sizes.dim(), x.dim()) != (torch.int64, 1, 2) or not len(sizes):
            raise ValueError("a packed sequence is [values, inputs] and int64 sizes [steps]")
        falls = bool((sizes[1:] <= sizes[:-1]).all()) and int(sizes[-1]) > 0
        if not falls or int(sizes.sum()) != len(x) or x.shape[1] < 1:
            raise ValueError(f"batch sizes that are not those of {len(x)} packed values")
        offsets = F.pad(sizes.cumsum(0), (1, 0)).contiguous()
        return _Sizes(int(sizes[0]), len(sizes), None, 0, offsets)

    def strides(self, x: Tensor) -> tuple[int, int]:
        """Of steps and of sequences."""
        return 0 if self.step is None else x.stride(self.step), x.stride(self.row)


def _run(
    x: Tensor,
    out: Tensor,
    states: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    matrices: tuple[Matrix, Matrix],
    kind: str,
    sizes: _Sizes,
    reverse: bool,
    reading: Reading,
) -> None:
    (x_step, x_row), (out_step, out_row) = sizes.strides(x), sizes.strides(out)
    h0, hn, c0, cn = states
    call = _Call(
        kind=KINDS[kind][0],
        reverse=reverse,
        threads=torch.get_num_threads(),
        offsets=None if sizes.offsets is None else sizes.offsets.data_ptr(),
        steps=sizes.steps,
        batch=sizes.batch,
        inputs=x.shape[-1],
        hidden=h0.shape[1],
        reading=reading.as_struct(),
        of_input=matrices[0].as_struct(),
        of_state=matrices[1].as_struct(),
        x=x.data_ptr(),
        x_step=x_step,
        x_row=x_row,
        h0=h0.data_ptr(),
        c0=None if c0 is None else c0.data_ptr(),
        out=out.data_ptr(),
        out_step=out_step,
        out_row=out_row,
        hn=hn.data_ptr(),
        cn=None if cn is None else cn.data_ptr(),
    )
    loaded = library()
    if loaded is None or loaded.octavo_recurrent(ctypes.byref(call)):
        raise MemoryError("a recurrent layer found no memory for its sums")


def _checked(
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    matrices: Sequence[Tensor],
    kind: str,
    directions: int,
    batch: int,
    reading: Reading,
) -> list[tuple[Matrix, Matrix]]:
    """The matrices of each direction of each layer.

    Raises:
        ValueError: something does not fit.
    """
    dtype = torch.uint8 if reading.how is How.INTEGERS else torch.float32
    if x.dtype != dtype or x.device.type != "cpu":
        raise ValueError(f"sequences of {x.dtype} on {x.device} where {dtype} is expected")
    count = len(matrices) // _TENSORS
    hidden = h0.shape[2] if h0.dim() == 3 else 0
    if not count or len(matrices) % _TENSORS or count % directions or hidden < 1:
        raise ValueError("weights that are not those of whole layers")
    states = [h0] if c0 is None else [h0, c0]
    if len(states) != 1 + (kind == "lstm") or any(
        (t.dtype, t.device.type, list(t.shape)) != (torch.float32, "cpu", [count, batch, hidden])
        for t in states
    ):
        raise ValueError("states that do not fit the sequences and layers")
    whole = [Matrix(*matrices[at : at + 4]) for at in range(0, len(matrices), 4)]
    width = hidden + -hidden % BLOCK
    for index, matrix in enumerate(whole):
        matrix.check()
        layer, of_state = index // (2 * directions), index % 2
        columns = width if of_state else directions * hidden if layer else x.shape[-1]
        if matrix.shape != (KINDS[kind][1] * width, columns + -columns % FOUR):
            raise ValueError("weights that do not fit the sequences and states")
        if columns > MOST_COLUMNS:
            raise ValueError(f"{columns} columns, of which a kernel takes {MOST_COLUMNS}")
    return list(zip(whole[::2], whole[1::2], strict=True))


def _shapes(
    x: Tensor, h0: Tensor, c0: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What `recurrent` makes, without values."""
    _, _, bidirectional, *_ = others
    width = h0.shape[2] * (1 + bidirectional)
    out = x.new_empty((*x.shape[:-1], width), dtype=torch.float32)
    cn = h0 if c0 is not None else h0[:0]
    return out, h0.new_empty(h0.shape), h0.new_empty(cn.shape)


register(
    "recurrent(Tensor x, Tensor h0, Tensor? c0, Tensor[] matrices, str kind, bool bidirectional,"
    " bool batch_first, int how, int low, int high, bool symmetric, float scale, int zero_point,"
    " Tensor? batch_sizes=None) -> (Tensor, Tensor, Tensor)",
    recurrent,
    _shapes,
)
