"""LSTM, GRU and RNN layers on integers, by Octavo's own kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Ref
from octavo.graph.operators import arguments
from octavo.numerics.native import library
from octavo.runtimes.native import recurrent
from octavo.runtimes.native.matrix import MOST_COLUMNS, How, Reading
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.torch.kernel import Kernel, Reads

# Roundings of the states add up to that of an input whose steps are so much larger.
_ADDED_UP = 4


def layers(context: Context, chain: Chain) -> Call:
    """All layers and directions of a node."""
    node, kind = chain.layer, chain.layer.short_op
    given = arguments(node)
    if context.caller == "package":
        raise Unsupported("a compiled library cannot call Octavo's own kernels")
    if library.obstacle():
        raise Unsupported(library.obstacle())
    if given["train"]:
        raise Unsupported("it is in training")
    x, reading, how = _read(context, given["input"])
    states = given["hx"] if kind == "lstm" else [given["hx"]]
    matrices = _matrices(context, kind, given["params"], given["has_biases"])
    bidirectional, batch_first = given["bidirectional"], given["batch_first"]
    step = recurrent.STEPS[reading.how is not How.FLOATS]
    settings = (kind, bidirectional, batch_first, *vars(reading).values())

    def kernel(x: Tensor, h0: Tensor, c0: Tensor | None = None) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            results = torch.ops.octavo.recurrent.default(x, h0, c0, matrices, *settings)
        else:
            results = recurrent.recurrent(x, h0, c0, matrices, *settings)
        return tuple(results) if c0 is not None else tuple(results[:2])

    return Call(f"octavo.{kind}{how}", kernel, (x, *states), rounds=_ADDED_UP * step)


def _read(context: Context, x: Ref) -> tuple[Ref, Reading, str]:
    """What the kernel reads in place of ``x``, how it does so, and that in words."""
    meta = context.graph.metas[x.name]
    if meta is None or meta.dtype != "float32":
        raise Unsupported("it does not compute in float32")
    if x.name in context.dynamic:
        given = arguments(context.dynamic[x.name][1])
        per_token = given["per_token"]
        how, words = (How.ROW_RANGE, "per token") if per_token else (How.TENSOR_RANGE, "dynamic")
        reading = Reading(how, given["qmin"], given["qmax"], given["symmetric"])
        return given["x"], reading, f", {words}"
    if x.name in context.integers:
        integers, source = context.source(x)
        if source.dtype != torch.uint8:
            raise Unsupported(f"its input is {source.dtype}")
        reading = Reading(How.INTEGERS, scale=source.scale, zero_point=source.zero_point)
        return integers, reading, ""
    return x, Reading(How.FLOATS), ", 16 bits"


def _matrices(context: Context, kind: str, params: list[Any], has_biases: bool) -> list[Tensor]:
    """The weights as the kernel wants them, which holds them from now on."""
    per_direction = 4 if has_biases else 2
    tensors: list[Tensor] = []
    held: list[tuple[Any, Callable[[], Tensor]]] = []
    for first in range(0, len(params), per_direction):
        arguments_of = params[first : first + per_direction]
        biases: list[Tensor | None] = [_constant(context, bias) for bias in arguments_of[2:]]
        hidden = context.weight(arguments_of[1])[0].shape[1]
        for index, (arg, bias) in enumerate(
            zip(arguments_of[:2], biases or [None, None], strict=True)
        ):
            weight, scale = context.weight(arg)
            columns = weight.shape[1]
            if len(weight) != recurrent.KINDS[kind][1] * hidden:
                raise Unsupported("its states are projected")
            if columns > MOST_COLUMNS:
                raise Unsupported(f"its weight has more than {MOST_COLUMNS} columns")
            matrix = recurrent.packed(kind, weight, scale, bias, of_state=index == 1)
            back = partial(recurrent.unpacked, kind, matrix.weights, hidden, columns)
            held.append((arg, back))
            tensors += matrix.tensors
    for arg, unpack in held:
        context.hold(arg, unpack)
    return tensors


def _constant(context: Context, bias: Any) -> Tensor:
    value = context.graph.constant(bias)
    if value is None or value.dtype != torch.float32:
        raise Unsupported("its bias is no float32 constant")
    return value


KERNELS = tuple(
    Kernel(("lstm", "gru", "rnn_tanh", "rnn_relu"), layers, reads, fusion=None) for reads in Reads
)
