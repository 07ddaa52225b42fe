"""What is learned of a block: whether weights go up or down, their scales, biases, the scales of
activations.

A weight is ``scale (clamp(floor(w / scale) + h, low, high) - zero point)``, where ``h`` is
AdaRound's rectified sigmoid (`octavo.quantization.weights.adaround`, equations 22 and 23), driven
to 0 or 1 on the way. The scale of a weight, and that of an activation, is its present one times
``exp(t)``; an activation is rounded straight through, and so its scale learns as in LSQ (Esser et
al. 2020, arXiv:1902.08153, equations 1 to 3).

In training an activation stays as it is with a probability, value by value (QDrop, Wei et al. 2022,
arXiv:2203.05740, section 3.3): what is learned suits more than the rounding errors that the few
samples have.

Tested in tests/qat/test_reconstruction.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.passes.training import RECURRENT
from octavo.graph.program import Step, compile_steps, step_of
from octavo.graph.qdq import (
    ATTENTION,
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    DYNAMIC,
    QUANTIZE,
    QuantizedWeight,
    rounding_behind,
    weight_behind,
)
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.numerics.affine import QParams
from octavo.numerics.observers import FixedRange
from octavo.numerics.octavo_operators import pack_int4
from octavo.numerics.scheme import Scheme
from octavo.qat import rounding
from octavo.quantization.plan import Plan
from octavo.quantization.weights import IntegerBiases, Layer, Rounded
from octavo.quantization.weights.adaround import logits_of, rectified

# How far a weight begins on the way from its float to the integer that it has: so far that
# it keeps that integer unless something is learned.
KEPT = 0.5
_FAR = 20.0  # a logit whose share is 1


class LearnedWeight:
    """A weight between the integer that it has now and the next one towards its float.

    Args:
        stored: the integers that it has now.
        exact: in float.
        scheme: of the integers.
    """

    def __init__(self, stored: QuantizedWeight, exact: Tensor, scheme: Scheme) -> None:
        self.stored, self.scheme = stored, scheme
        scale, zero_point = stored.parameters()
        place = exact.detach().to(torch.float32) / scale + zero_point
        now = stored.integers.to(torch.float32)
        self.below = torch.where(place < now, now - 1, now)
        share = (place - self.below).clamp(0.0, 1.0)
        self.logits = logits_of(torch.lerp(share, now - self.below, KEPT)).requires_grad_()
        self.stretch = torch.zeros_like(stored.scale).requires_grad_(not scheme.power_of_two)

    @property
    def scale(self) -> Tensor:
        """Float32, of the rank and the sizes of `QuantizedWeight.scale`."""
        return self.stored.scale * self.stretch.exp()

    def floats(self) -> Tensor:
        """What it is in training."""
        inside = (self.below + rectified(self.logits)).clamp(self.scheme.qmin, self.scheme.qmax)
        scale, zero_point = replace(self.stored, scale=self.scale).parameters()
        return (inside - zero_point) * scale

    @torch.no_grad()
    def settle(self) -> None:
        """From here on it is rounded, and its scale alone is learned."""
        self.logits = torch.where(rectified(self.logits) >= 0.5, _FAR, -_FAR)

    @torch.no_grad()
    def restart(self) -> None:
        """The integer and the scale that it had, which alone is learned from here on."""
        is_up = self.stored.integers.to(torch.float32) > self.below
        self.logits = torch.where(is_up, _FAR, -_FAR)
        self.stretch.zero_()

    def undecided(self, beta: float) -> Tensor:
        """The sum of ``1 - |2 h - 1|^beta``, equation 24 of AdaRound."""
        return (1 - (2 * rectified(self.logits) - 1).abs().pow(beta)).sum()

    @torch.no_grad()
    def rounded(self) -> tuple[Tensor, QParams]:
        """The integers in the end, in the type that is stored, and their qparams."""
        up = rectified(self.logits) >= 0.5
        integers = (self.below + up).clamp(self.scheme.qmin, self.scheme.qmax)
        scale, zero_point = self.scale.detach(), self.stored.zero_point
        if self.scheme.group_size is None:
            shape = () if self.scheme.channel_axis is None else (-1,)
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        stored = integers.to(self.scheme.integers.storage)
        return stored, QParams(scale, zero_point, self.scheme)


class LearnedRange:
    """Rounds an activation, and drops the rounding of a part of its values.

    Args:
        now: its qparams.
        learns: whether the scale is learned.
        drop: draws, for a tensor, where it stays as it is.
    """

    def __init__(self, now: QParams, learns: bool, drop: Callable[[Tensor], Tensor]) -> None:
        self.now, self.drop = now, drop
        self.stretch = torch.zeros_like(now.scale).requires_grad_(learns)

    @property
    def scale(self) -> Tensor:
        return self.now.scale * self.stretch.exp()

    def __call__(self, x: Tensor) -> Tensor:
        rounded = rounding.fake_quantize_learned(x, replace(self.now, scale=self.scale), 1.0)
        return torch.where(self.drop(x), x, rounded)


@dataclass(frozen=True)
class Learned:
    """All that is learned of a block.

    Attributes:
        part: the block in the quantized graph.
        weights: by the name of their constant.
        ranges: of the activations that are rounded in it, by the tensor whose scale they share.
        biases: by their layer.
        layers: whose weights or biases are among these.
    """

    part: Graph
    weights: Mapping[str, LearnedWeight]
    ranges: Mapping[str, LearnedRange]
    biases: Mapping[str, Tensor]
    layers: Sequence[Layer]

    @classmethod
    def of(
        cls,
        part: Graph,
        layers: Sequence[Layer],
        plan: Plan,
        free: Collection[str],
        drop: Callable[[Tensor], Tensor],
    ) -> Learned:
        """From what they are now.

        Args:
            part: the block in the quantized graph.
            layers: those of the block whose weights no other layer reads.
            plan: of the whole graph.
            free: the tensors whose scale is rounded with in this block alone.
            drop: see `LearnedRange`.
        """
        own = {layer.weight_name: layer for layer in layers}
        weights = {
            weight.name: LearnedWeight(weight, layer.weight, layer.scheme)
            for weight in _weights_in(part)
            if (layer := own.get(weight.name)) is not None and is_learned(layer)
        }
        biases = {}
        for layer in layers:
            bias = arguments(part.by_name[layer.name])["bias"] if layer.takes_bias else None
            if bias is not None and part.only_user(bias.name) is not None:
                biases[layer.name] = part.constants[bias.name].clone().requires_grad_()
        ranges = {}
        for node in part.nodes:
            if node.op == QUANTIZE:
                name = leader(plan, node.args[0].name)
                spec = plan.tensors[name].spec
                assert spec is not None
                fixed = isinstance(spec.observer, FixedRange) or spec.scheme.power_of_two
                now = _qparams_of(node, spec.scheme, part.device)
                ranges[name] = LearnedRange(now, name in free and not fixed, drop)
        return cls(part, weights, ranges, biases, layers)

    def program(self, plan: Plan) -> Callable[..., tuple[Any, ...]]:
        """The block in training, a function of its inputs."""
        steps = list(self._steps(plan))
        part = self.part
        constants = {**part.constants, **self._by_constant()}
        return compile_steps(part.input_names(), steps, part.output_names(), constants)

    def _steps(self, plan: Plan) -> Iterator[Step]:
        weights = {weight.reader.name: weight.name for weight in _weights_in(self.part)}
        learned = {name: self.weights[n] for name, n in weights.items() if n in self.weights}
        inside = {w.stored.unpack.name for w in learned.values() if w.stored.unpack is not None}
        for node in self.part.nodes:
            if node.op == QUANTIZE or node.name in inside:
                continue  # with the node that reads it back
            if node.name in learned:
                yield Step(node.name, learned[node.name].floats)
            elif node.op == DEQUANTIZE:
                source = self.part.by_name[node.args[0].name].args[0]
                yield Step(node.name, self.ranges[leader(plan, source.name)], (source,))
            elif node.op in _STRAIGHT_THROUGH:
                yield Step(node.name, _STRAIGHT_THROUGH[node.op], node.args)
            else:
                yield step_of(_differentiable(node), self.part.device)

    def settle(self) -> None:
        """See `LearnedWeight.settle`."""
        for weight in self.weights.values():
            weight.settle()

    @torch.no_grad()
    def restart(self) -> None:
        """All as it was; weights are settled."""
        for weight in self.weights.values():
            weight.restart()
        for each in self.ranges.values():
            each.stretch.zero_()
        for layer, bias in self.biases.items():
            name = arguments(self.part.by_name[layer])["bias"].name
            bias.copy_(self.part.constants[name])

    def undecided(self, beta: float) -> Tensor | float:
        """See `LearnedWeight.undecided`; the mean of all weights."""
        count = sum(weight.logits.numel() for weight in self.weights.values())
        return sum(weight.undecided(beta) for weight in self.weights.values()) / max(count, 1)

    @torch.no_grad()
    def applied_to(self, graph: Graph, plan: Plan) -> Graph:
        """The whole quantized graph with what was learned, biases in whole steps of their sums."""
        scales = {name: each.scale.item() for name, each in self.ranges.items()}
        biases = {name: bias.detach().clone() for name, bias in self._by_constant().items()}

        def with_scale(node: Node) -> Node:
            if node.op not in (QUANTIZE, DEQUANTIZE):
                return node
            source = node if node.op == QUANTIZE else graph.by_name[node.args[0].name]
            name = leader(plan, source.args[0].name)
            return with_arguments(node, scale=scales[name]) if name in scales else node

        nodes = tuple(map(with_scale, graph.nodes))
        graph = replace(graph, nodes=nodes, constants={**graph.constants, **biases})
        rounded = {name: weight.rounded() for name, weight in self.weights.items()}
        for layer in filter(IntegerBiases().fits, self.layers):
            if layer.weight_name in rounded:
                rounded[layer.weight_name], bias = _in_whole_steps(
                    layer, *rounded[layer.weight_name], graph, plan
                )
                graph = replace(graph, constants={**graph.constants, **bias})
        constants = dict(graph.constants)
        for name, (integers, qparams) in rounded.items():
            stored = self.weights[name].stored
            constants[name] = integers if stored.unpack is None else pack_int4(integers)
            scale, _ = qparams.of_rank(integers.dim())
            constants[stored.reader.args[1].name] = scale.contiguous()
        return replace(graph, constants=constants)

    def _by_constant(self) -> dict[str, Tensor]:
        """The biases by the name of their constant."""
        given = {name: arguments(self.part.by_name[name])["bias"] for name in self.biases}
        return {given[name].name: bias for name, bias in self.biases.items()}


def leader(plan: Plan, name: str) -> str:
    """The tensor whose scale a rounded one has."""
    return plan.tensors[name].shares or name


def is_learned(layer: Layer) -> bool:
    """Whether it is learned where its weight is rounded to: a table has more rows than data."""
    return WEIGHT_LAYOUTS[layer.node.short_op].input is not None


_STRAIGHT_THROUGH: Mapping[str, Callable[..., Tensor]] = {
    DYNAMIC: rounding.fake_quantize_dynamic,
    ATTENTION: rounding.attention,
}


def _differentiable(node: Node) -> Node:
    """Recurrent layers have a gradient on every device in training alone."""
    in_training = {"train": True, "dropout": 0.0}
    return with_arguments(node, **in_training) if node.short_op in RECURRENT else node


def _weights_in(graph: Graph) -> Iterator[QuantizedWeight]:
    for node in graph.nodes:
        if node.op == DEQUANTIZE_WEIGHT:
            weight = weight_behind(graph, Ref(node.name))
            if weight is not None:
                yield weight


def _qparams_of(node: Node, scheme: Scheme, device: torch.device) -> QParams:
    """Of a quantize node."""
    given = arguments(node)
    return QParams(
        torch.tensor(given["scale"], device=device),
        torch.tensor(given["zero_point"], dtype=torch.int32, device=device),
        scheme,
    )


def _in_whole_steps(
    layer: Layer, integers: Tensor, qparams: QParams, graph: Graph, plan: Plan
) -> tuple[tuple[Tensor, QParams], dict[str, Tensor]]:
    """The weight, its scales with room for the bias, and the bias as `IntegerBiases` has it."""
    given = arguments(graph.by_name[layer.name])
    source = rounding_behind(graph, given["input"])
    if given["bias"] is None or source is None:
        return (integers, qparams), {}
    spec = plan.tensors[leader(plan, source.args[0].name)].spec
    assert spec is not None
    read = _qparams_of(source, spec.scheme, integers.device)
    name = given["bias"].name
    now = Rounded(integers, qparams, graph.constants[name], read)
    now = IntegerBiases().round(layer, now, None)
    bias = IntegerBiases().bias(layer, now, None)
    assert bias is not None
    return (now.integers, now.qparams), {name: bias}
