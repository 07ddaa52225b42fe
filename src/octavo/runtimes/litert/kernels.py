"""LiteRT's three sets of kernels, and how each gets from the sums of an operator to its integers.

XNNPACK's, which phones take, multiply by a float and round half to even, as the oracle does. The
others have fixed-point numbers; where they round otherwise a rule says how, so that the oracle of a
file gives the integers of the kernels that run it. Operators without a rule are the graph's.

Tested in tests/runtimes/litert/test_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node
from octavo.graph.operators import arguments
from octavo.graph.program import Step, compile_steps, step_of
from octavo.graph.qdq import QUANTIZE
from octavo.runtimes.litert.fixed_point import (
    Multiplier,
    divided,
    rounded_once,
    rounded_twice,
    rounded_twice_up,
)
from octavo.runtimes.litert.functions import sigmoid, softmax, tanh, widened
from octavo.runtimes.litert.rounding import CLIPS
from octavo.runtimes.litert.values import Made, Value

Multiply = Callable[[Tensor, Multiplier], Tensor]


@dataclass(frozen=True)
class Rule:
    """How kernels make the integers of an operator.

    Attributes:
        integers: what the operator gives, and how the file makes integers of it -> these, less
            their zero point.
        of_arguments: whether it takes the operator's arguments in place of what that gives.
    """

    integers: Callable[[Sequence[Any], Made], Tensor]
    of_arguments: bool = False


@dataclass(frozen=True)
class Kernels:
    """A set of kernels.

    Attributes:
        resolver: LiteRT's name for what finds them.
        rules: operator of the schema -> how its integers of eight bits are made, where that is not
            what the graph says.
    """

    resolver: str
    rules: Mapping[str, Rule] = field(default_factory=dict)


def oracle_of(
    graph: Graph, made: Mapping[str, Sequence[Made]], kernels: Kernels
) -> Callable[..., tuple[Any, ...]]:
    """A function from a graph's inputs to what a set of kernels makes of them.

    Args:
        graph: as the file was made of it.
        made: rounding of the graph -> the operators of the file that give its integers.
        kernels: which.
    """
    steps = [_step(graph, node, made.get(node.name, ()), kernels.rules) for node in graph.nodes]
    return compile_steps(graph.input_names(), steps, graph.output_names(), graph.constants)


def _step(graph: Graph, node: Node, made: Sequence[Made], rules: Mapping[str, Rule]) -> Step:
    known = [each for each in made if each.kind in rules and each.result.form.dtype == "int8"]
    if node.op != QUANTIZE or not known:
        return step_of(node, torch.device("cpu"))
    rule = rules[known[0].kind]
    read = _arguments_behind(graph, node) if rule.of_arguments else node.args[:1]
    return Step(node.name, _Integers(rule, known[0], node), read)


def _arguments_behind(graph: Graph, quantize: Node) -> Sequence[Any]:
    """Those of the operator whose result is rounded, in front of what cuts that to a range."""
    node = graph.by_name[quantize.args[0].name]
    node = graph.by_name[node.args[0].name] if node.short_op in CLIPS else node
    return tuple(arguments(node).values())


class _Integers:
    """A rule in the place of a rounding of the graph, whose integers may be unsigned."""

    def __init__(self, rule: Rule, made: Made, quantize: Node) -> None:
        given = arguments(quantize)
        self.rule, self.made = rule, made
        self.dtype, self.zero_point = given["dtype"], given["zero_point"]
        shift = self.zero_point - made.result.form.zero_point
        self.low, self.high = made.low + shift, made.high + shift

    def __call__(self, *given: Any) -> Tensor:
        integers: Tensor = self.rule.integers(given, self.made) + self.zero_point
        return integers.clamp(self.low, self.high).to(self.dtype)


def _sums(floats: Tensor, steps: float | Tensor) -> Tensor:
    """The whole numbers of steps that floats are."""
    return (floats.double() / steps).round().to(torch.int64)


def _scale(value: Value) -> float:
    """As the file has it, in 32 bits."""
    return float(np.float32(value.form.scale))


def _multiplier(scale: float) -> Multiplier:
    return Multiplier.of(torch.tensor(scale, dtype=torch.float64))


def _by_blocks(size: int) -> Multiply:
    """Blocks of so many channels by vectors, whose halves go up, and the channels left one by one.

    Of images, and by one thread: several share the channels first.
    """

    def multiply(sums: Tensor, by: Multiplier) -> Tensor:
        channels = sums.shape[1]
        in_blocks = torch.arange(channels) < channels - channels % size
        in_blocks = in_blocks.reshape(-1, *[1] * (sums.dim() - 2))
        return torch.where(in_blocks, rounded_twice_up(sums, by), rounded_twice(sums, by))

    return multiply


def _layer(multiply: Multiply) -> Rule:
    """Sums of products with weights, which may have a scale for each channel."""

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        steps = _steps_of_sums(made, given[0].dim())
        return multiply(_sums(given[0], steps), Multiplier.of(steps / _scale(made.result)))

    return Rule(integers)


def _steps_of_sums(made: Made, dims: int) -> Tensor:
    """What a layer's sums count, for each channel of the graph's result where these differ."""
    x = made.read(2 if made.kind == "TRANSPOSE_CONV" else 0)
    quantization = made.read(1).form.quantization
    assert quantization is not None
    steps = torch.tensor(quantization.scales, dtype=torch.float32).double() * _scale(x)
    if bool((steps == steps[0]).all()):
        return steps[0]
    shape = [1] * dims
    shape[-1 if made.kind == "FULLY_CONNECTED" else 1] = -1
    return steps.reshape(shape)


def _product(multiply: Multiply) -> Rule:
    """Products of two values, or sums of such."""

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        step = np.float32(_scale(made.read(0))) * np.float32(_scale(made.read(1)))
        scale = float(step / np.float32(_scale(made.result)))
        return multiply(_sums(given[0], float(step)), _multiplier(scale))

    return Rule(integers)


_BEHIND_THE_POINT = 20  # bits that an addition puts there before it changes a scale


def _sum(sign: int) -> Rule:
    """Additions: both values at half of the larger scale, and their sum at the result's."""

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        scales = [_scale(made.read(place)) for place in (0, 1)]
        common = 2 * max(scales)
        one, other = (
            rounded_twice(_sums(values, scale) << _BEHIND_THE_POINT, _multiplier(scale / common))
            for values, scale in zip(given[:2], scales, strict=True)
        )
        by = _multiplier(common / (_scale(made.result) * 2**_BEHIND_THE_POINT))
        return rounded_twice(one + sign * other, by)

    return Rule(integers, of_arguments=True)


def _changed(given: Sequence[Any], made: Made) -> Tensor:
    """Floats, or integers of another scale."""
    x, source = given[0], made.read(0)
    if source.form.quantization is None:
        steps = x / np.float32(_scale(made.result))
        return torch.trunc(steps + torch.copysign(torch.tensor(0.5), steps)).to(torch.int64)
    by = _multiplier(_scale(source) / _scale(made.result))
    return rounded_twice(_sums(x, _scale(source)), by)


def _mean(given: Sequence[Any], made: Made) -> Tensor:
    """Means: sums by a multiplier that is divided by their number."""
    source, count = made.read(0), _values_of_each(made)
    by = _multiplier(_scale(source) / _scale(made.result)).over(count)
    return rounded_twice(_sums(given[0], _scale(source) / count), by)


def _mean_of_image(given: Sequence[Any], made: Made) -> Tensor:
    """Means of whole images, whose zero point is brought to the result's scale alone."""
    source, count = made.read(0), _values_of_each(made)
    if len(made.result.shape) != 4 or made.result.shape[1:3] != (1, 1):
        return _mean(given, made)
    zero_point, scale = source.form.zero_point, np.float32(_scale(source))
    target = np.float32(_scale(made.result))
    sums = _sums(given[0], float(scale) / count) + zero_point * count
    by = _multiplier(float(scale / (np.float32(count) * target)))
    moved = np.float32(zero_point) * scale / target
    return _by_blocks(16)(sums, by) - int(moved + np.copysign(np.float32(0.5), moved))


def _values_of_each(made: Made) -> int:
    """How many values each mean is of."""
    return int(np.prod(made.read(0).shape) // np.prod(made.result.shape))


_OF_FUNCTIONS = 4  # integer bits of what sigmoid and tanh take


def _function(function: Callable[[Tensor, int], Tensor], bits: int, least: int) -> Rule:
    """A function in fixed point, as integers of so many bits behind the point.

    Args:
        function: of numbers with integer bits, without such.
        bits: of its result.
        least: of the integers, what it is of numbers that are far below 0.
    """

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        by, radius = widened(_scale(made.read(0)), _OF_FUNCTIONS)
        x = _sums(given[0], _scale(made.read(0)))
        found = function(rounded_twice(x, by), _OF_FUNCTIONS)
        result = divided(found, torch.tensor(31 - bits))
        return torch.where(x <= -radius, least, torch.where(x >= radius, (1 << bits) - 1, result))

    return Rule(integers, of_arguments=True)


def _softmax(given: Sequence[Any], made: Made) -> Tensor:
    x, dim = given[:2]
    scale = _scale(made.read(0))
    return softmax(_sums(x, scale), scale, dim)


_TWICE: Mapping[str, Rule] = {
    **dict.fromkeys(
        "CONV_2D DEPTHWISE_CONV_2D TRANSPOSE_CONV FULLY_CONNECTED".split(), _layer(rounded_twice)
    ),
    **dict.fromkeys(["MUL", "BATCH_MATMUL"], _product(rounded_twice)),
    "ADD": _sum(1),
    "SUB": _sum(-1),
    **dict.fromkeys("QUANTIZE RELU RELU6 RELU_N1_TO_1".split(), Rule(_changed)),
    "MEAN": Rule(_mean),
}
_OPTIMIZED: Mapping[str, Rule] = {
    **_TWICE,
    **dict.fromkeys(["CONV_2D", "FULLY_CONNECTED"], _layer(rounded_twice_up)),
    **dict.fromkeys(["DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"], _layer(_by_blocks(8))),
    "MEAN": Rule(_mean_of_image),
}
# The other sets have functions by tables, as the oracle gives them.
_REFERENCE: Mapping[str, Rule] = {
    **_TWICE,
    "FULLY_CONNECTED": _layer(rounded_once),
    "LOGISTIC": _function(sigmoid, 8, 0),
    "TANH": _function(tanh, 7, -128),
    "SOFTMAX": Rule(_softmax, of_arguments=True),
}
KERNELS: Mapping[str, Kernels] = {
    "xnnpack": Kernels("BUILTIN"),
    "optimized": Kernels("BUILTIN_WITHOUT_DEFAULT_DELEGATES", _OPTIMIZED),
    "reference": Kernels("BUILTIN_REF", _REFERENCE),
}
"""Those that phones take, LiteRT's own for other CPUs, and those that tell what is right."""
