"""Chains: a layer of a QDQ graph with what one int8 kernel can run along with it.

Tested in tests/runtimes/torch/test_int8.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.qdq import QUANTIZE, weight_behind
from octavo.numerics import octavo_operators
from octavo.quantization.bfloat16 import CAST, SUFFIX
from octavo.quantization.fusions import Fusion
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.products import Product
from octavo.runtimes.torch.integer_kernels import meets_halves

# Who calls the kernels: Python; what torch.compile makes; or a compiled library, without Python.
Caller = Literal["python", "compiler", "package"]


class Unsupported(Exception):
    """There is no int8 kernel for a chain; the message says why, as a clause."""


@dataclass(frozen=True)
class Chain:
    """A layer, then an addition, an activation and the quantization of the result, if there."""

    layer: Node
    addition: Node | None = None
    activation: Node | None = None
    quantize: Node | None = None

    @property
    def nodes(self) -> list[Node]:
        members = (self.layer, self.addition, self.activation, self.quantize)
        return [node for node in members if node is not None]

    @property
    def out(self) -> Integers | None:
        """The integers that the chain ends in; ``None`` where its result is float."""
        return None if self.quantize is None else integers_of(self.quantize)


@dataclass(frozen=True)
class Call:
    """A kernel call that takes the place of a chain.

    ``overwrites`` names an argument whose memory the result takes over; ``moves`` one whose memory
    it may share. ``rounds``: see `octavo.runtimes.lowered.Lowered`.
    """

    kernel: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    overwrites: str | None = None
    moves: str | None = None
    rounds: float = 0.0


@dataclass
class Context:
    """What is known of the graph while it is walked; its dictionaries grow on the way.

    ``integers``: dequantized value -> the integers behind it, and what they mean. ``dynamic``:
    value rounded by its own range -> the integers with their scale and zero point, and how it was
    rounded. ``prepacked``: constant that a kernel holds in its own form -> what gives its integers
    back. ``products``: constant -> the kernel that holds it, see `Lowered`. ``programs``: whether
    native programs may run layers.
    """

    graph: Graph
    caller: Caller = "python"
    integers: dict[str, tuple[str, Integers]] = field(default_factory=dict)
    dynamic: dict[str, tuple[str, Node]] = field(default_factory=dict)
    prepacked: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)
    programs: bool = True

    def before_cast(self, name: str) -> str:
        """What a layer in bfloat16 reads in float32; of other values itself."""
        node = self.graph.by_name.get(name)
        is_cast = node is not None and node.op == CAST and name.endswith(SUFFIX)
        return node.args[0].name if node is not None and is_cast else name

    def source(self, arg: Any) -> tuple[Ref, Integers]:
        """The integers behind a dequantized argument.

        Raises:
            Unsupported: the argument is float.
        """
        if isinstance(arg, Ref) and arg.name in self.integers:
            name, integers = self.integers[arg.name]
            return Ref(name), integers
        raise Unsupported("an input of it is float")

    def weight(self, arg: Any, output_axis: int = 0) -> tuple[Tensor, Tensor]:
        """The int8 integers of a weight, and their scale for each output channel.

        Fewer bits than eight are int8 too: those of four are unpacked here, once.

        Raises:
            Unsupported: the weight is float, of another type, or not symmetric.
        """
        weight = weight_behind(self.graph, arg)
        if weight is None:
            raise Unsupported("its weight is float")
        if weight.grouped:
            raise Unsupported("its weight is quantized in groups")
        integers, scale = weight.integers, weight.channel_scale(output_axis)
        if integers.dtype != torch.int8:
            raise Unsupported(f"its weight is {integers.dtype}, the kernel takes int8")
        if scale is None or not weight.symmetric:
            raise Unsupported("its weight is not symmetric over output channels")
        return integers.contiguous(), scale  # kernels read the memory as it lies

    def hold(self, arg: Any, unpack: Callable[[], Tensor]) -> None:
        """Note that a kernel holds a weight, whose int8 integers ``unpack`` gives back."""
        weight = weight_behind(self.graph, arg)
        assert weight is not None
        packed = weight.unpack is not None
        self.prepacked[weight.name] = (
            (lambda: octavo_operators.pack_int4(unpack())) if packed else unpack
        )


def integers_of(quantize: Node) -> Integers:
    """What a quantize node's result means.

    The kernels take uint8: int8 is stored from 0 on, its zero point moved along, which means the
    same.
    """
    _, scale, zero_point, low, high, dtype = quantize.args
    if dtype == torch.int8:
        return Integers(scale, zero_point - low, 0, high - low, torch.uint8)
    return Integers(scale, zero_point, low, high, dtype)


_BEHIND_AN_ADDITION = frozenset({"relu"})


def chain_from(context: Context, layer: Node, fusion: Fusion) -> Chain:
    """The longest chain that starts at a layer, of what its kernel takes in."""
    addition = activation = quantize = None
    fusable = fusion.activations
    after = context.graph.only_user(layer.name)
    if fusion.addition and after is not None and _joins(context, layer, after, fusion):
        addition = after
        after = context.graph.only_user(addition.name)
        fusable = _BEHIND_AN_ADDITION
    if after is not None and after.short_op in fusable:
        activation = after
        after = context.graph.only_user(activation.name)
    if after is not None and after.op == QUANTIZE:
        quantize = after
    return Chain(layer, addition, activation, quantize)


def _joins(context: Context, layer: Node, addition: Node, fusion: Fusion) -> bool:
    """Whether the kernel can take the addition in; oneDNN's sums into the other operand's memory.

    That needs an addition of a quantized tensor of the same shape and type, whose result is
    quantized again.
    """
    if context.caller != "python":
        return False  # compilers take no kernel that overwrites an operand: they drop its copy
    if addition.op != "aten.add.Tensor" or addition.kwargs:
        return False
    others = [arg for arg in addition.args[:2] if arg != Ref(layer.name)]
    other = others[0].name if len(others) == 1 and isinstance(others[0], Ref) else ""
    after = context.graph.only_user(addition.name)
    if after is not None and after.short_op in _BEHIND_AN_ADDITION:
        after = context.graph.only_user(after.name)
    read = layer.args[0].name
    if not {read, other} <= context.integers.keys() or after is None or after.op != QUANTIZE:
        return False
    out = integers_of(after)
    step = context.integers[read][1].scale * context.weight(arguments(layer)["weight"])[1]
    same_type = context.integers[other][1].dtype == out.dtype
    same_shape = context.graph.metas[other] == context.graph.metas[layer.name]
    return same_type and same_shape and (fusion.halves_to_even or not meets_halves(step, out))


def bytes_of(context: Context, arg: Any) -> tuple[Ref, Integers]:
    """The integers behind an argument.

    Raises:
        Unsupported: it is float, or of more than eight bits.
    """
    x, integers = context.source(arg)
    check_bytes("input", integers)
    return x, integers


def check_bytes(what: str, integers: Integers) -> None:
    """See that integers are those that native programs take.

    Raises:
        Unsupported: they are of more than eight bits.
    """
    if integers.dtype != torch.uint8:
        raise Unsupported(f"its {what} is {integers.dtype}, the kernel takes 8 bits")
