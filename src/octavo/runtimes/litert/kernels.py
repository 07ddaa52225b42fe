"""LiteRT's three sets of kernels, and how each gets from the sums of an operator to its integers.

XNNPACK's, which phones take, multiply by a float and round half to even, as the oracle does. The
others have fixed-point numbers; where they round otherwise a rule says how, so that the oracle of a
file gives the integers of the kernels that run it. Operators without a rule are the graph's.

Tested in tests/runtimes/litert/test_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Graph, Node, Ref, map_refs
from octavo.graph.operators import arguments
from octavo.graph.program import Step, compile_steps, step_of
from octavo.graph.qdq import DEQUANTIZE, QUANTIZE, weight_behind
from octavo.runtimes.litert.fixed_point import (
    Multiplier,
    divided,
    rounded_by_few_bits,
    rounded_once,
    rounded_twice,
    rounded_twice_up,
)
from octavo.runtimes.litert.functions import hard_swish, sigmoid, softmax, tanh, widened
from octavo.runtimes.litert.rounding import CLIPS
from octavo.runtimes.litert.values import Made, Value

Multiply = Callable[[Tensor, Multiplier], Tensor]


class Reads(Enum):
    """What a rule makes integers of."""

    RESULT = "what the operator gives in the graph"
    EXACT_RESULT = "the same in float64: sums of int16 have more bits than a float32"
    ARGUMENTS = "the operator's arguments"


@dataclass(frozen=True)
class Rule:
    """How kernels make the integers of an operator.

    Attributes:
        integers: what it reads, and how the file makes integers of it -> these, less their zero
            point.
        reads: what that is.
    """

    integers: Callable[[Sequence[Any], Made], Tensor]
    reads: Reads = Reads.RESULT


@dataclass(frozen=True)
class Kernels:
    """A set of kernels.

    Attributes:
        resolver: LiteRT's name for what finds them.
        rules: type of the integers -> operator of the schema -> how they are made, where that is
            not what the graph says.
    """

    resolver: str
    rules: Mapping[str, Mapping[str, Rule]] = field(default_factory=dict)

    def rule_of(self, made: Made) -> Rule | None:
        """How an operator of a file makes its integers; ``None`` where the graph says it."""
        return self.rules.get(made.result.form.dtype, {}).get(made.kind)

    def differ(self, made: Mapping[str, Iterable[Made]]) -> bool:
        """Whether the integers of a file are others than those that the graph says."""
        return any(self.rule_of(each) for known in made.values() for each in known)


def oracle_of(
    graph: Graph, made: Mapping[str, Sequence[Made]], kernels: Kernels
) -> Callable[..., tuple[Any, ...]]:
    """A function from a graph's inputs to what a set of kernels makes of them.

    Args:
        graph: as the file was made of it.
        made: rounding of the graph -> the operators of the file that give its integers.
        kernels: which.
    """
    steps = [
        step
        for node in graph.nodes
        for step in _steps(graph, node, made.get(node.name, ()), kernels)
    ]
    return compile_steps(graph.input_names(), steps, graph.output_names(), graph.constants)


def _steps(graph: Graph, node: Node, made: Sequence[Made], kernels: Kernels) -> list[Step]:
    """A node as it stands, or a rule in its place."""
    known = next((each for each in made if kernels.rule_of(each)), None)
    rule = None if known is None else kernels.rule_of(known)
    if node.op != QUANTIZE or known is None or rule is None:
        return [step_of(node, torch.device("cpu"))]
    integers = _Integers(rule, known, node)
    if rule.reads is Reads.RESULT:
        return [Step(node.name, integers, node.args[:1])]
    operator = _operator_behind(graph, node)
    if rule.reads is Reads.ARGUMENTS:
        return [Step(node.name, integers, tuple(arguments(operator).values()))]
    exact = f"{node.name}/exact"
    return [*_in_float64(graph, operator, exact), Step(node.name, integers, (Ref(exact),))]


def _operator_behind(graph: Graph, quantize: Node) -> Node:
    """The operator whose result is rounded, in front of what cuts that to a range."""
    node = graph.by_name[quantize.args[0].name]
    return graph.by_name[node.args[0].name] if node.short_op in CLIPS else node


def _in_float64(graph: Graph, node: Node, name: str) -> list[Step]:
    """An operator on what the integers that it reads stand for, so that no bit of sums is lost."""
    steps: list[Step] = []

    def exact(ref: Ref) -> Any:
        weight, constant = weight_behind(graph, ref), graph.constant(ref)
        if weight is not None:
            scale, zero_point = weight.parameters()
            return _read(weight.integers, scale.double(), zero_point)
        if constant is not None:
            return constant.double() if constant.is_floating_point() else constant
        reader = graph.by_name[ref.name]
        assert reader.op == DEQUANTIZE
        given, read = arguments(reader), Ref(f"{name}/{ref.name}")
        meaning = {"scale": float(np.float32(given["scale"])), "zero_point": given["zero_point"]}
        steps.append(Step(read.name, partial(_read, **meaning), reader.args[:1]))
        return read

    args, kwargs = map_refs((tuple(node.args), dict(node.kwargs)), exact)
    return [*steps, Step(name, operators.resolve(node.op), args, kwargs)]


def _read(integers: Tensor, scale: float | Tensor, zero_point: int | Tensor) -> Tensor:
    """What integers stand for, float64."""
    return (integers.double() - zero_point) * scale


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


def _layer(multiply: Multiply, reads: Reads = Reads.RESULT) -> Rule:
    """Sums of products with weights, which may have a scale for each channel."""

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        steps = _steps_of_sums(made, given[0].dim())
        return multiply(_sums(given[0], steps), Multiplier.of(steps / _scale(made.result)))

    return Rule(integers, reads)


def _convolution(multiply: Multiply) -> Rule:
    """A layer of one group; those of several groups are the reference kernels' in every set."""
    of_one, of_several = _layer(multiply), _layer(rounded_twice)

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        has_groups = made.read(0).shape[-1] != made.read(1).shape[-1]
        return (of_several if has_groups else of_one).integers(given, made)

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


def _product(multiply: Multiply, divide: Callable[[Any], Any], reads: Reads = Reads.RESULT) -> Rule:
    """Products of two values, or sums of such.

    Args:
        multiply: sums times a scale.
        divide: the numbers in which the product of both scales is divided by the result's.
        reads: what a rule reads.
    """

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        one, other = (_scale(made.read(place)) for place in (0, 1))
        product = np.float32(one) * np.float32(other)
        scale = float(divide(product) / divide(_scale(made.result)))
        return multiply(_sums(given[0], one * other), Multiplier.of_one(scale))

    return Rule(integers, reads)


def _sum(sign: int, bits: int) -> Rule:
    """Additions: both values at half of the larger scale, and their sum at the result's.

    Args:
        sign: of the second one.
        bits: put behind the point before scales change.
    """

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        scales = [_scale(made.read(place)) for place in (0, 1)]
        common = 2 * max(scales)
        one, other = (
            rounded_twice(_sums(values, scale) << bits, Multiplier.of_one(scale / common))
            for values, scale in zip(given[:2], scales, strict=True)
        )
        by = Multiplier.of_one(common / (_scale(made.result) * 2**bits))
        return rounded_twice(one + sign * other, by)

    return Rule(integers, Reads.ARGUMENTS)


def _changed(given: Sequence[Any], made: Made) -> Tensor:
    """Integers of another scale."""
    source = made.read(0)
    by = Multiplier.of_one(_scale(source) / _scale(made.result))
    return rounded_twice(_sums(given[0], _scale(source)), by)


def _quantized(steps: Callable[[Tensor, np.float32], Tensor]) -> Rule:
    """Integers of another scale, or floats.

    Args:
        steps: floats and a scale -> whole numbers of that.
    """

    def integers(given: Sequence[Any], made: Made) -> Tensor:
        if made.read(0).form.quantization is not None:
            return _changed(given, made)
        return steps(given[0], np.float32(_scale(made.result))).to(torch.int64)

    return Rule(integers)


def _half_to_even(x: Tensor, scale: np.float32) -> Tensor:
    """By a product, where the graph divides: of so many integers that shows."""
    return torch.round(x * float(np.float32(1) / scale))


def _half_away(x: Tensor, scale: np.float32) -> Tensor:
    steps = x / float(scale)
    return torch.trunc(steps + torch.copysign(torch.tensor(0.5), steps))


def _mean(given: Sequence[Any], made: Made) -> Tensor:
    """Means: sums by a multiplier that is divided by their number."""
    source, count = made.read(0), _values_of_each(made)
    by = Multiplier.of_one(_scale(source) / _scale(made.result)).over(count)
    return rounded_twice(_sums(given[0], _scale(source) / count), by)


def _mean_of_image(given: Sequence[Any], made: Made) -> Tensor:
    """Means of whole images, whose zero point is brought to the result's scale alone."""
    source, count = made.read(0), _values_of_each(made)
    if len(made.result.shape) != 4 or made.result.shape[1:3] != (1, 1):
        return _mean(given, made)
    zero_point, scale = source.form.zero_point, np.float32(_scale(source))
    target = np.float32(_scale(made.result))
    sums = _sums(given[0], float(scale) / count) + zero_point * count
    by = Multiplier.of_one(float(scale / (np.float32(count) * target)))
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

    return Rule(integers, Reads.ARGUMENTS)


def _softmax(given: Sequence[Any], made: Made) -> Tensor:
    x, dim = given[:2]
    scale = _scale(made.read(0))
    return softmax(_sums(x, scale), scale, dim)


def _hard_swish(given: Sequence[Any], made: Made) -> Tensor:
    scale = _scale(made.read(0))
    return hard_swish(_sums(given[0], scale), scale, _scale(made.result))


_BY_ALL_SETS = {"HARD_SWISH": Rule(_hard_swish, Reads.ARGUMENTS)}
_RESCALED = {
    **dict.fromkeys("RELU RELU6 RELU_N1_TO_1".split(), Rule(_changed)),
    "QUANTIZE": _quantized(_half_to_even),
}
_OF_REFERENCE = {"QUANTIZE": _quantized(_half_away)}
_LAYERS = "CONV_2D DEPTHWISE_CONV_2D TRANSPOSE_CONV FULLY_CONNECTED".split()
_TWICE: Mapping[str, Rule] = {
    **_BY_ALL_SETS,
    **_RESCALED,
    **dict.fromkeys(_LAYERS, _layer(rounded_twice)),
    "MUL": _product(rounded_twice, np.float32),
    "BATCH_MATMUL": _product(rounded_twice, np.float64),
    "ADD": _sum(1, bits=20),
    "SUB": _sum(-1, bits=20),
    "MEAN": Rule(_mean),
}
_OPTIMIZED: Mapping[str, Rule] = {
    **_TWICE,
    "CONV_2D": _convolution(rounded_twice_up),
    "FULLY_CONNECTED": _layer(rounded_twice_up),
    **dict.fromkeys(["DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"], _layer(_by_blocks(8))),
    "MEAN": Rule(_mean_of_image),
}
# The other sets have functions by tables, as the oracle gives them.
_REFERENCE: Mapping[str, Rule] = {
    **_TWICE,
    **_OF_REFERENCE,
    "FULLY_CONNECTED": _layer(rounded_once),
    "LOGISTIC": _function(sigmoid, 8, 0),
    "TANH": _function(tanh, 7, -128),
    "SOFTMAX": Rule(_softmax, Reads.ARGUMENTS),
}
# XNNPACK has no kernels for int16, so that these are LiteRT's own in each set.
_SIXTEEN_BITS: Mapping[str, Rule] = {
    **_RESCALED,
    **dict.fromkeys(_LAYERS, _layer(rounded_by_few_bits, Reads.EXACT_RESULT)),
    "FULLY_CONNECTED": _layer(rounded_once, Reads.EXACT_RESULT),
    "MUL": _product(rounded_twice, np.float32, Reads.EXACT_RESULT),
    "BATCH_MATMUL": _product(rounded_by_few_bits, np.float64, Reads.EXACT_RESULT),
    "ADD": _sum(1, bits=15),
    "SUB": _sum(-1, bits=15),
    "MEAN": Rule(_mean, Reads.EXACT_RESULT),
}


def _kernels(
    resolver: str,
    of_eight_bits: Mapping[str, Rule],
    of_sixteen_bits: Mapping[str, Rule] = _SIXTEEN_BITS,
) -> Kernels:
    return Kernels(resolver, {"int8": of_eight_bits, "int16": of_sixteen_bits})


KERNELS: Mapping[str, Kernels] = {
    "xnnpack": _kernels("BUILTIN", _BY_ALL_SETS),
    "optimized": _kernels("BUILTIN_WITHOUT_DEFAULT_DELEGATES", _OPTIMIZED),
    "reference": _kernels("BUILTIN_REF", _REFERENCE, {**_SIXTEEN_BITS, **_OF_REFERENCE}),
}
"""Those that phones take, LiteRT's own for other CPUs, and those that tell what is right."""
