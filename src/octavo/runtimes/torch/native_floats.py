"""Float operators that native programs can do, so that they part no layers on integers.

Where no such layer stands beside them they stay torch's.

Tested in tests/runtimes/torch/test_native_floats.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Node, Ref, refs_in
from octavo.graph.operators import arguments
from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.dynamic import CHANNELS, Activate, FloatAttention
from octavo.runtimes.native.moves import Pad, Roll
from octavo.runtimes.native.operations import Arithmetic, Calculation, Concatenate, Item, Look
from octavo.runtimes.native.planning import Operation
from octavo.runtimes.native.rows import AddUp, Normalize
from octavo.runtimes.torch import integer_kernels
from octavo.runtimes.torch.chains import Context, Unsupported
from octavo.runtimes.torch.native_runs import Either

LOOKS = frozenset(
    """
    reshape flatten unflatten squeeze unsqueeze transpose permute t movedim swapaxes expand narrow
    slice select
    """.split()
)
SPLITS = frozenset({"chunk", "split", "split_with_sizes", "unbind"})
PADDINGS = ("pad", "constant_pad_nd")
NORMS = frozenset({"layer_norm", "rms_norm"})

# What is done, and the names of what it reads.
Described = tuple[Operation, tuple[str, ...]]

_CALCULATIONS = {
    "aten.add.Tensor": Calculation.SUM,
    "aten.sub.Tensor": Calculation.DIFFERENCE,
    "aten.mul.Tensor": Calculation.PRODUCT,
    "aten.div.Tensor": Calculation.QUOTIENT,
}

# Those that keep NaN as torch does.
_ACTIVATIONS = {
    "relu": Activation.RELU,
    "hardswish": Activation.HARDSWISH,
    "silu": Activation.SILU,
    "sigmoid": Activation.SIGMOID,
    "gelu": Activation.GELU,
    "tanh": Activation.TANH,
}


def obstacle(context: Context) -> str:
    """Why programs cannot be called, as a clause; ``""`` where they can."""
    if context.caller != "python":
        return "compilers know no native programs"
    if not context.programs:
        return "native programs are left out"
    return library.obstacle()


def either(context: Context, node: Node) -> Either | None:
    """A float operator for programs, if they know it."""
    describe = _DESCRIBE.get(node.short_op)
    if describe is None or obstacle(context):
        return None
    try:
        operation, reads = describe(context, node)
    except Unsupported:
        return None
    return Either(operators.resolve(node.op), operation, reads)


def look_of(node: Node) -> tuple[Look, tuple[str, ...]]:
    """How a node looks at its first argument, and the numbers that it reads for it.

    Raises:
        Unsupported: by keyword arguments.
    """
    if node.kwargs:
        raise Unsupported("it has keyword arguments")
    numbers = tuple(dict.fromkeys(refs_in(node.args[1:])))
    return Look(operators.resolve(node.op), node.args[1:], numbers), numbers


def item_of(context: Context, node: Node) -> tuple[Item, tuple[str, ...]]:
    """Which of a tensor's parts a node is; it reads no numbers.

    Raises:
        Unsupported: it is one of other things.
    """
    source = context.graph.producer(node.args[0])
    if source is None or source.short_op not in SPLITS or list(refs_in(node.args[1:])):
        raise Unsupported("it is not of the parts of a tensor")
    return Item(node.args[1]), ()


def norm_of(context: Context, node: Node) -> Normalize:
    """A norm, or a softmax over the last axis.

    Raises:
        Unsupported: it is over another axis, or its weight is computed or not float32.
    """
    given = arguments(node)
    if node.short_op not in NORMS:
        meta = context.graph.metas[node.args[0].name]
        rank = 0 if meta is None else len(meta.shape)
        if not rank or given["dim"] not in (-1, rank - 1) or given.get("dtype") is not None:
            raise Unsupported("it is over an axis that is not the last")
        return Normalize("softmax")
    weight, bias = (_parameter(context, given.get(name)) for name in ("weight", "bias"))
    eps = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]
    return Normalize(node.short_op, len(given["normalized_shape"]), eps, weight, bias)


def _parameter(context: Context, arg: object) -> Tensor | None:
    constant = context.graph.constant(arg)
    if arg is not None and (constant is None or constant.dtype != torch.float32):
        raise Unsupported("its weight is not float32")
    return None if constant is None else constant.contiguous()


def _float(context: Context, arg: object) -> str:
    """The name of a float tensor.

    Raises:
        Unsupported: it is none.
    """
    meta = context.graph.meta(arg.name) if isinstance(arg, Ref) else None
    if not isinstance(arg, Ref) or meta is None or meta.dtype != "float32":
        raise Unsupported("it is not float32")
    return arg.name


def _norm(context: Context, node: Node) -> Described:
    return norm_of(context, node), (_float(context, node.args[0]),)


def _calculation(context: Context, node: Node) -> Described:
    if node.op not in _CALCULATIONS or node.kwargs:
        raise Unsupported("it is of numbers")
    one, other = (_float(context, arg) for arg in node.args[:2])
    return Arithmetic(_CALCULATIONS[node.op]), (one, other)


def _activation(context: Context, node: Node) -> Described:
    kind = _ACTIVATIONS[node.short_op]
    if kind is Activation.GELU and arguments(node)["approximate"] == "tanh":
        kind = Activation.GELU_TANH
    return Activate(kind), (_float(context, node.args[0]),)


def _attention(context: Context, node: Node) -> Described:
    given = arguments(node)
    q, k, v, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    read = tuple(_float(context, arg) for arg in (q, k, v))
    metas = [context.graph.meta(name) for name in read]
    channels = {meta.shape[-1] for meta in metas if meta is not None}
    if len(channels) > 1 or any(type(n) is not int or n % CHANNELS for n in channels):
        raise Unsupported(f"its heads are not of {CHANNELS} channels, or of different ones")
    causal, lengths = bool(given["is_causal"]), [m.shape[-2] for m in metas[:2] if m is not None]
    if given["dropout_p"] or (causal and (None in lengths or lengths[0] != lengths[1])):
        raise Unsupported("it leaves out values by chance, or its lengths may differ")
    if mask is not None:
        meta = context.graph.meta(mask.name)
        if meta is None or meta.dtype not in ("float32", "bool"):
            raise Unsupported("its mask is of another type")
        read = (*read, mask.name)
    attention = FloatAttention(causal, given["scale"], bool(given.get("enable_gqa")))
    return attention, read


def _total(context: Context, node: Node) -> Described:
    given = arguments(node)
    x = node.args[0]
    name, meta = _float(context, x), context.graph.meta(x.name)
    rank = 0 if meta is None else len(meta.shape)
    dims = given.get("dim")
    dims = (
        tuple(sorted(dim % rank for dim in dims)) if rank and isinstance(dims, list | tuple) else ()
    )
    if given.get("dtype") is not None or not dims or dims != tuple(range(dims[0], dims[-1] + 1)):
        raise Unsupported("its axes are no neighbours, or its result is of another type")
    return AddUp(dims, bool(given["keepdim"]), node.short_op == "mean"), (name,)


def _look(context: Context, node: Node) -> Described:
    x = _float(context, node.args[0])
    look, numbers = look_of(node)
    if any(context.graph.meta(name) is not None for name in numbers):
        raise Unsupported("its sizes are tensors")
    return look, (x, *numbers)


def _item(context: Context, node: Node) -> Described:
    item, _ = item_of(context, node)
    source = node.args[0].name
    _look(context, context.graph.by_name[source])
    return item, (source,)


def roll_of(node: Node) -> Roll:
    """How a node rolls its first argument.

    Raises:
        Unsupported: along no axis, along one twice, or by computed numbers.
    """
    _, shifts, dims = arguments(node).values()
    numbers = [*shifts, *dims]
    if not dims or len(set(dims)) < len(dims) or not all(type(n) is int for n in numbers):
        raise Unsupported("its axes or shifts are not known")
    return Roll(dict(zip(dims, shifts, strict=True)))


def padding_of(node: Node, integers: Integers | None = None) -> Pad:
    """How a node pads its first argument, which may be integers.

    Raises:
        Unsupported: by other values than one number, or with less than nothing.
    """
    given = arguments(node)
    amounts, number = given["pad"], given.get("value") or 0.0
    if given.get("mode", "constant") != "constant" or type(number) not in (int, float):
        raise Unsupported("it is padded by other values")
    if any(type(amount) is not int or amount < 0 for amount in amounts):
        raise Unsupported("it is cut, or how much is added is not known")
    value = torch.tensor(float(number))
    return Pad(amounts, value if integers is None else integer_kernels.quantize(integers)(value))


def _roll(context: Context, node: Node) -> Described:
    return roll_of(node), (_float(context, node.args[0]),)


def _padding(context: Context, node: Node) -> Described:
    return padding_of(node), (_float(context, node.args[0]),)


def _pool(context: Context, node: Node) -> Described:
    """An image's mean."""
    x, size = node.args[:2]
    name, meta = _float(context, x), context.graph.meta(x.name)
    if meta is None or len(meta.shape) != 4 or list(size) not in ([1], [1, 1]):
        raise Unsupported("it is no mean of an image")
    return AddUp((2, 3), keepdim=True, mean=True), (name,)


def _concatenation(context: Context, node: Node) -> Described:
    given = arguments(node)
    return Concatenate(given["dim"]), tuple(_float(context, arg) for arg in given["tensors"])


_DESCRIBE: dict[str, Callable[[Context, Node], Described]] = {
    **dict.fromkeys([*NORMS, "softmax"], _norm),
    **dict.fromkeys(("add", "sub", "mul", "div"), _calculation),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys([*LOOKS, *SPLITS], _look),
    **dict.fromkeys(("sum", "mean"), _total),
    "adaptive_avg_pool2d": _pool,
    "roll": _roll,
    **dict.fromkeys(PADDINGS, _padding),
    "getitem": _item,
    "cat": _concatenation,
}
