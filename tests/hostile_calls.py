"""Calls of the operators that a file may hold, with foreign arguments: what the checks at load let
through is run, at the sizes they saw and at others. A script for `fuzzing.run`.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import fuzzing
import torch
from torch import Tensor

from octavo.errors import ArtifactError, CaptureError
from octavo.graph import operators
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta, map_refs
from octavo.graph.soundness import schemas, shapes, soundness

DTYPES = [torch.float32] * 12 + [torch.int64] * 4 + sorted(schemas.DTYPES, key=str)
NUMBERS = [0, 1, 2, 3, 4, -1, -2, 5, 7, 8, 16, 100, -100, 10**4, 2**31, -(2**31), 2**40, -(2**40)]
NUMBERS += [2**62, 2**63 - 1, -(2**63) + 1, 2**64]
FLOATS = [0.0, 1.0, -1.0, 0.5, 2.0, 1e-5, -0.0, 1e30, -1e30, 1e-45, float("nan"), float("inf")]
FOREIGN: list[Any] = [
    None, True, "", "mean", "x" * 300, [], [[]], {}, (), [None], ["a"], torch.int8, torch.strided,
    torch.sparse_coo, torch.channels_last, torch.device("cpu"), 1j, [1e308], [True], object,
]  # fmt: skip


@cache
def names() -> list[str]:
    """All operators on tensors that a graph may hold."""
    allowed = (("aten", operators.ATEN), ("octavo", operators.OCTAVO))
    found = [
        f"{namespace}.{name}.{overload}"
        for namespace, known in allowed
        for name in known
        for overload in getattr(getattr(torch.ops, namespace), name).overloads()
    ]
    return sorted(name for name in found if _is_allowed(name))


def _is_allowed(name: str) -> bool:
    try:
        operators.resolve(name)
    except CaptureError:
        return False
    return True


class Dice(random.Random):
    """Arguments, from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.sizes = self.choices([1, 2, 3, 4, 5, 6, 8, 0, 17], k=self.choice([1, 2, 3]))
        self.rank = self.choice([0, 1, 2, 3, 3, 4, 4, 5])
        self.dtype = self.choice(DTYPES)

    def some(self, share: float) -> bool:
        return self.random() < share

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        if not shape:
            rank = self.rank if self.some(0.7) else self.choice([0, 1, 2, 3, 4, 5, 6])
            shape = tuple(self.choice(self.sizes) for _ in range(rank))
        dtype = dtype or (self.dtype if self.some(0.8) else self.choice(DTYPES))
        generator = torch.Generator().manual_seed(self.randrange(2**31))
        kind = self.choice(["normal", "normal", "small", "small", "index", "zero", "wild"])
        values = torch.randn(shape, generator=generator)
        if kind == "small" or (kind == "normal" and not dtype.is_floating_point):
            values = torch.randint(0, 3, shape, generator=generator).double()
        elif kind == "index":
            values = torch.randint(-20, 10**6, shape, generator=generator).double()
        elif kind == "zero":
            values = torch.zeros(shape)
        elif kind == "wild":
            pick = torch.randint(0, 4, shape, generator=generator)
            values = torch.tensor([1e30, float("nan"), float("-inf"), -(2.0**62)])[pick]
        return values.to(dtype)

    def number(self) -> int:
        return (
            self.choice(self.sizes)
            if self.some(0.3)
            else self.choice(NUMBERS[: self.choice([5, 9, 22])])
        )

    def numbers(self, count: int | None) -> list[int]:
        count = count if count and self.some(0.9) else self.choice([0, 1, 2, 3, 4, 5, 70])
        if self.some(0.5):
            return [self.choice(self.sizes) for _ in range(count)]
        return [self.number() for _ in range(count)]


def _text(dice: Dice, name: str) -> str:
    if name == "equation":
        return dice.choice(
            ["ij,jk->ik", "bij,bjk", "...i,...i->...", "a,b,c->abc", "ii->i", "i,j->"]
        )
    return dice.choice(sorted(schemas._WORDS[name]))


MAKERS: dict[str, Callable[[Dice, Any], Any]] = {
    "Tensor": lambda dice, a: dice.tensor(),
    "int": lambda dice, a: dice.number(),
    "float": lambda dice, a: dice.choice(FLOATS),
    "number": lambda dice, a: dice.choice([dice.choice(FLOATS), dice.number()]),
    "bool": lambda dice, a: dice.some(0.5) and a.name != "pin_memory",
    "str": lambda dice, a: _text(dice, a.name),
    "ScalarType": lambda dice, a: dice.choice(DTYPES),
    "Layout": lambda dice, a: torch.strided,
    "MemoryFormat": lambda dice, a: dice.choice(
        [torch.contiguous_format, torch.preserve_format, torch.channels_last]
    ),
    "Device": lambda dice, a: torch.device("cpu"),
}


def made(dice: Dice, argument: Any) -> Any:
    """A value of about the right kind."""
    if dice.some(0.02):
        return dice.choice(FOREIGN)
    optional, kind = schemas._stripped("Optional", str(argument.real_type))
    if optional and dice.some(0.4):
        return None
    is_list, kind = schemas._stripped("List", kind)
    _, kind = schemas._stripped("Optional", kind)
    if is_list and kind == "int":
        return dice.numbers(argument.N)
    if is_list:
        return [MAKERS[kind](dice, argument) for _ in range(dice.choice([1, 2, 2, 3, 0]))]
    return MAKERS[kind](dice, argument)


T = Dice.tensor
F32 = torch.float32


def _rnn(gates: int, states: int) -> Callable[[Dice], list[Any]]:
    def arguments(d: Dice) -> list[Any]:
        layers, both, biases, n, b, h = d.choice([1, 2]), d.some(0.5), d.some(0.7), 4, 2, 3
        x, params = T(d, 5, b, n, dtype=F32), []
        for layer in range(layers):
            columns = n if layer == 0 else h * (1 + both)
            for _ in range(1 + both):
                params += [T(d, gates * h, columns, dtype=F32), T(d, gates * h, h, dtype=F32)]
                params += [T(d, gates * h, dtype=F32) for _ in range(2 * biases)]
        state = [T(d, layers * (1 + both), b, h, dtype=F32) for _ in range(states)]
        hx = state if states == 2 else state[0]
        return [x, hx, params, biases, layers, 0.0, False, both, False]

    return arguments


def _conv(n: int, transposed: bool = False) -> Callable[[Dice], list[Any]]:
    def arguments(d: Dice) -> list[Any]:
        groups, i, o = d.choice([1, 1, 2, 4]), d.choice([1, 2]), d.choice([1, 2])
        x = T(d, d.choice([1, 2]), groups * i, *[d.choice([4, 5, 7])] * n, dtype=F32)
        shape = (groups * i, o) if transposed else (groups * o, i)
        weight = T(d, *shape, *[d.choice([1, 2, 3])] * n, dtype=F32)
        bias = T(d, groups * o, dtype=F32) if d.some(0.5) else None
        rest = [[d.choice([1, 2, 3])] * n, [d.choice([0, 1, 2])] * n]
        last = [[d.choice([1, 2])] * n]
        return [
            x,
            weight,
            bias,
            *rest,
            *([[0] * n, groups, *last] if transposed else [*last, groups]),
        ]

    return arguments


# Calls that are right, to be altered in places: foreign ones seldom get so far.
TEMPLATES: dict[str, Callable[[Dice], list[Any]]] = {
    "lstm.input": _rnn(4, 2),
    "gru.input": _rnn(3, 1),
    "rnn_tanh.input": _rnn(1, 1),
    **{f"conv{n}d.default": _conv(n) for n in (1, 2, 3)},
    "conv_transpose1d.default": _conv(1, True),
    "conv_transpose2d.input": _conv(2, True),
    "conv_transpose3d.input": _conv(3, True),
    "linear.default": lambda d: [T(d, 2, 3, dtype=F32), T(d, 4, 3, dtype=F32), T(d, 4, dtype=F32)],
    "_weight_norm.default": lambda d: [T(d, 4, 3, dtype=F32), T(d, 4, 1, dtype=F32), 0],
    "embedding.default": lambda d: [T(d, 5, 3, dtype=F32), T(d, 2, 2, dtype=torch.int64)],
    "embedding_bag.default": lambda d: [
        T(d, 5, 3, dtype=F32), T(d, 6, dtype=torch.int64), torch.tensor([0, 2, 5]),
        False, d.choice([0, 1, 2]), False, None, d.some(0.5),
    ],
    "embedding_bag.padding_idx": lambda d: [
        T(d, 5, 3, dtype=F32), T(d, 6, dtype=torch.int64), torch.tensor([0, 2, 5]),
        False, d.choice([0, 1, 2]), False, None, d.some(0.5), d.choice([None, 1, 4]),
    ],
    "native_group_norm.default": lambda d: [T(d, 2, 4, 3, dtype=F32), None, None, 2, 4, 3, 2, 1e-5],
    "native_layer_norm.default": lambda d: [T(d, 2, 4, dtype=F32), [4], None, None, 1e-5],
    "_native_batch_norm_legit_no_training.default": lambda d: [
        T(d, 2, 4, 3, dtype=F32), None, None, T(d, 4, dtype=F32), T(d, 4, dtype=F32), 0.1, 1e-5,
    ],
    "batch_norm.default": lambda d: [
        T(d, 2, 4, 3, dtype=F32), None, None, T(d, 4, dtype=F32), T(d, 4, dtype=F32),
        False, 0.1, 1e-5, False,
    ],
    "group_norm.default": lambda d: [T(d, 2, 4, 3, dtype=F32), 2, None, None],
    "layer_norm.default": lambda d: [T(d, 2, 4, dtype=F32), [4], T(d, 4, dtype=F32), None],
    "scaled_dot_product_attention.default": lambda d: [
        T(d, 1, 2, 3, 4, dtype=F32), T(d, 1, 2, 5, 4, dtype=F32), T(d, 1, 2, 5, 4, dtype=F32),
    ],
    "grid_sampler.default": lambda d: [
        T(d, 1, 2, 4, 4, dtype=F32), T(d, 1, 3, 3, 2, dtype=F32), d.choice([0, 1, 2]),
        d.choice([0, 1, 2]), d.some(0.5),
    ],
    "grid_sampler_2d.default": lambda d: [
        T(d, 1, 2, 4, 4, dtype=F32), T(d, 1, 3, 3, 2, dtype=F32), d.choice([0, 1, 2]),
        d.choice([0, 1, 2]), d.some(0.5),
    ],
    "col2im.default": lambda d: [T(d, 1, 8, 9, dtype=F32), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]],
    "im2col.default": lambda d: [T(d, 1, 2, 4, 4, dtype=F32), [2, 2], [1, 1], [0, 0], [1, 1]],
    "max_pool2d_with_indices.default": lambda d: [T(d, 1, 2, 5, 5, dtype=F32), [2, 2]],
    "max_pool2d.default": lambda d: [
        T(d, 1, 2, 5, 5, dtype=F32), [2, 2], [2, 2], [1, 1], [1, 1], True,
    ],
    "avg_pool2d.default": lambda d: [T(d, 1, 2, 5, 5, dtype=F32), [2, 2], [2, 2], [1, 1], True],
    "adaptive_avg_pool2d.default": lambda d: [T(d, 1, 2, 5, 5, dtype=F32), [2, 3]],
    "adaptive_max_pool2d.default": lambda d: [T(d, 1, 2, 5, 5, dtype=F32), [2, 3]],
    "upsample_nearest2d.default": lambda d: [T(d, 1, 2, 3, 3, dtype=F32), [5, 6], 2.0, 2.0],
    "upsample_bilinear2d.default": lambda d: [T(d, 1, 2, 3, 3, dtype=F32), [5, 6], True, 2.0, 2.0],
    "upsample_bicubic2d.default": lambda d: [T(d, 1, 2, 3, 3, dtype=F32), [5, 6], True, 2.0, 2.0],
    "_upsample_bilinear2d_aa.default": lambda d: [
        T(d, 1, 2, 3, 3, dtype=F32), [5, 6], True, 2.0, 2.0,
    ],
    "_upsample_nearest_exact2d.default": lambda d: [T(d, 1, 2, 3, 3, dtype=F32), [5, 6], 2.0, 2.0],
    "gather.default": lambda d: [T(d, 3, 4, dtype=F32), 1, T(d, 3, 2, dtype=torch.int64)],
    "scatter.src": lambda d: [
        T(d, 3, 4, dtype=F32), 1, T(d, 3, 2, dtype=torch.int64), T(d, 3, 2, dtype=F32),
    ],
    "scatter_add.default": lambda d: [
        T(d, 3, 4, dtype=F32), 1, T(d, 3, 2, dtype=torch.int64), T(d, 3, 2, dtype=F32),
    ],
    "scatter_reduce.two": lambda d: [
        T(d, 3, 4, dtype=F32), 1, T(d, 3, 2, dtype=torch.int64), T(d, 3, 2, dtype=F32), "sum",
    ],
    "index.Tensor": lambda d: [T(d, 3, 4, dtype=F32), [None, T(d, 2, dtype=torch.int64)]],
    "index_put.default": lambda d: [
        T(d, 3, 4, dtype=F32), [None, T(d, 2, dtype=torch.int64)], T(d, 3, 2, dtype=F32),
    ],
    "index_add.default": lambda d: [
        T(d, 3, 4, dtype=F32), 0, T(d, 2, dtype=torch.int64), T(d, 2, 4, dtype=F32),
    ],
    "index_copy.default": lambda d: [
        T(d, 3, 4, dtype=F32), 0, T(d, 2, dtype=torch.int64), T(d, 2, 4, dtype=F32),
    ],
    "index_select.default": lambda d: [T(d, 3, 4, dtype=F32), 0, T(d, 2, dtype=torch.int64)],
    "masked_scatter.default": lambda d: [
        T(d, 3, 4, dtype=F32), T(d, 3, 4, dtype=torch.bool), T(d, 12, dtype=F32),
    ],
    "searchsorted.Tensor": lambda d: [
        T(d, 2, 5, dtype=F32), T(d, 2, 3, dtype=F32), False, False, None,
        T(d, 2, 5, dtype=torch.int64) if d.some(0.5) else None,
    ],
    "bucketize.Tensor": lambda d: [T(d, 2, 5, dtype=F32), T(d, 4, dtype=F32)],
    "repeat_interleave.Tensor": lambda d: [T(d, 4, dtype=torch.int64), d.choice([None, 4, 100])],
    "repeat_interleave.self_Tensor": lambda d: [
        T(d, 4, 2, dtype=F32), T(d, 4, dtype=torch.int64), 0, d.choice([None, 4, 100]),
    ],
    "reflection_pad2d.default": lambda d: [T(d, 1, 2, 4, 4, dtype=F32), [1, 2, 1, 2]],
    "replication_pad2d.default": lambda d: [T(d, 1, 2, 4, 4, dtype=F32), [1, 2, 1, 2]],
    "one_hot.default": lambda d: [T(d, 4, dtype=torch.int64), d.choice([-1, 3, 10])],
    "topk.default": lambda d: [T(d, 3, 4, dtype=F32), 2],
    "kthvalue.default": lambda d: [T(d, 3, 4, dtype=F32), 2],
    "cdist.default": lambda d: [T(d, 3, 4, dtype=F32), T(d, 5, 4, dtype=F32)],
    "bilinear.default": lambda d: [
        T(d, 2, 3, dtype=F32), T(d, 2, 4, dtype=F32), T(d, 5, 3, 4, dtype=F32), None,
    ],
    "prelu.default": lambda d: [T(d, 2, 3, dtype=F32), T(d, 3, dtype=F32)],
    "lstm_cell.default": lambda d: [
        T(d, 2, 4, dtype=F32), [T(d, 2, 3, dtype=F32), T(d, 2, 3, dtype=F32)],
        T(d, 12, 4, dtype=F32), T(d, 12, 3, dtype=F32),
    ],
    "gru_cell.default": lambda d: [
        T(d, 2, 4, dtype=F32), T(d, 2, 3, dtype=F32), T(d, 9, 4, dtype=F32), T(d, 9, 3, dtype=F32),
    ],
    "quantize.default": lambda d: [T(d, 3, 4, dtype=F32), 0.1, 3, 0, 255, torch.uint8],
    "dequantize.Tensor": lambda d: [
        T(d, 3, 4, dtype=torch.int8), T(d, 3, 2, dtype=F32), T(d, 3, 2, dtype=torch.int32),
    ],
    "unpack_int4.default": lambda d: [T(d, 6, dtype=torch.uint8), [3, 4], True],
    "attention.default": lambda d: [
        T(d, 1, 2, 3, 4, dtype=F32), T(d, 1, 2, 5, 4, dtype=F32), T(d, 1, 2, 5, 4, dtype=F32),
        None, d.some(0.5), None, False, 255,
    ],
}  # fmt: skip


def call(seed: int) -> tuple[str, list[Any], dict[str, Any]]:
    """An operator's name, positional and keyword arguments."""
    dice = Dice(seed)
    name = dice.choice(names())
    short = name.partition(".")[2]
    if dice.some(0.3):
        short = dice.choice(sorted(TEMPLATES))
        name = next(n for n in names() if n.partition(".")[2] == short)
    arguments = operators.resolve(name)._schema.arguments
    if short in TEMPLATES and dice.some(0.8):
        args = TEMPLATES[short](dice)
        for _ in range(dice.choice([0, 1, 1, 2])):
            _alter(dice, args, arguments)
        return name, args, {}
    given = [a for a in arguments if not a.has_default_value() or dice.some(0.4)]
    positional = 0
    while (
        positional < len(given)
        and given[positional] is arguments[positional]
        and not arguments[positional].kwarg_only
    ):
        positional += 1
    values = [made(dice, a) for a in given]
    keywords = {a.name: v for a, v in zip(given[positional:], values[positional:], strict=True)}
    return name, values[:positional], keywords


def _alter(dice: Dice, args: list[Any], arguments: Sequence[Any]) -> None:
    place = dice.randrange(min(len(args), len(arguments)))
    value = args[place]
    if isinstance(value, list) and value and dice.some(0.7):
        value = args[place] = list(value)
        index = dice.randrange(len(value))
        value[index] = dice.tensor() if isinstance(value[index], Tensor) else dice.number()
    elif isinstance(value, Tensor) and dice.some(0.5):
        shape = list(value.shape)
        if shape:
            shape[dice.randrange(len(shape))] = dice.choice([0, 1, 2, 5, 17])
        args[place] = dice.tensor(*shape, dtype=value.dtype)
    else:
        args[place] = made(dice, arguments[place])


def outcome(seed: int) -> str:
    """``refused``, ``runs``, ``error`` (the operator's own), or what is wrong."""
    name, args, kwargs = call(seed)
    tensors: dict[str, Tensor] = {}
    node = Node("node", name, tuple(_as_refs(args, tensors)), _as_refs(kwargs, tensors))
    x = Input("x", TensorMeta((1,), "float32"))
    node = replace(node, meta=_declared(node, tensors))
    try:
        soundness.check(Graph((x,), tensors, (node,), {"x": Ref("x")}, Ref("node")))
    except ArtifactError:
        return "refused"
    try:
        result = _run(node, tensors)
    except Exception as error:  # noqa: BLE001  (the operator's own)
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return f"{name} takes too much memory"
        return "error"
    found = TensorMeta.of(result) if isinstance(result, Tensor) else None
    fits = found is node.meta or (found is not None and node.meta and found.fits(node.meta))
    if not fits and node.short_op not in shapes.OPEN:
        return f"{name} makes {found}, not {node.meta}"
    with suppress(Exception):  # at sizes that the checks did not see
        _run(node, _resized(Dice(seed), tensors))
    return "runs"


def _run(node: Node, tensors: dict[str, Tensor]) -> Any:
    args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: tensors[ref.name])
    with torch.inference_mode():
        return operators.resolve(node.op)(*args, **kwargs)


def _resized(dice: Dice, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some of them with an axis of another size."""
    others = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() and dice.some(0.5):
            shape = list(tensor.shape)
            shape[dice.choice([0, 0, dice.randrange(len(shape))])] = dice.choice([0, 1, 2, 50])
            others[name] = dice.tensor(*shape, dtype=tensor.dtype)
    return others


def _as_refs(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[f"t{len(tensors)}"] = value
        return Ref(f"t{len(tensors) - 1}")
    if isinstance(value, list | tuple):
        return type(value)(_as_refs(item, tensors) for item in value)
    if isinstance(value, dict):
        return {key: _as_refs(item, tensors) for key, item in value.items()}
    return value


def _declared(node: Node, tensors: dict[str, Tensor]) -> TensorMeta | None:
    """What the checks find that it makes: a file would declare it."""
    args, kwargs = map_refs(
        (node.args, dict(node.kwargs)), lambda ref: tensors[ref.name].to("meta")
    )
    operator = operators.resolve(node.op)
    try:
        result = shapes.result_of(node.op, operator, schemas.bound(operator, args, kwargs))
    except Exception:  # noqa: BLE001  (check will say why)
        return None
    return TensorMeta.of(result) if isinstance(result, Tensor) else None


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.zeros(2, device="meta").softmax(0)  # imports what torch's own answers need
    fuzzing.serve(outcome, {"refused", "runs", "error"})
