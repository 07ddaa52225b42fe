"""The training program: a list of steps that computes what the quantized model will, and learns.

It is made of two graphs of one model. The *deployed* one (batch norms folded, no dropout) is what
the plan speaks of, and what is quantized in the end. The *training* one has what only training
has. Their values have the same names.

Tested in tests/qat/test_model.py and tests/qat/test_prepare.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.graph import Graph, Node, Ref
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.passes import (
    fold_batch_norm,
    foldable_norms,
    in_evaluation,
    in_training,
    normalise_spelling,
    simplified,
    written_attention,
)
from octavo.graph.passes.fold_batch_norm import NORM_TENSORS, Folding, tensors_of
from octavo.graph.passes.training import training_flag
from octavo.graph.program import Step, step_of
from octavo.qat import rounding
from octavo.qat.fake_quantize import FakeQuantize
from octavo.qat.layer_rounding import LayerRounding
from octavo.qat.layer_with_norm import BatchNorm, LayerWithNorm, Mode
from octavo.quantization.convert import rounds_probabilities, with_rounded_probabilities
from octavo.quantization.plan import Plan
from octavo.quantization.targets import ROLES, SHARED
from octavo.quantization.weights import IntegerBiases, quantized_layers


@dataclass(frozen=True)
class TrainingGraph:
    """A model as it is trained.

    Attributes:
        graph: with dropout and batch norms; its constants are the tensors that are trained.
        norms: layer -> the batch norm that is folded into it when the model is deployed.
    """

    graph: Graph
    norms: Mapping[str, Node]

    @classmethod
    def of(cls, traced: Graph, trained: Collection[str] = ()) -> TrainingGraph:
        """From the graph that capture starts from, and the names of the constants to be trained."""
        graph = simplified(in_training(normalise_spelling(traced)))
        # Before dropout is gone: it keeps what is written out as it is, in both graphs.
        whole = written_attention(graph)
        # The operator's scale is a number, which would learn nothing.
        if all(_readers(graph, name) == _readers(whole, name) for name in _numbers(graph, trained)):
            graph = whole
        return cls(graph, foldable_norms(simplified(in_evaluation(graph))))

    def deployed(self, constants: Mapping[str, Tensor] | None = None) -> Graph:
        """The canonical float graph, with these tensors in place of its own."""
        graph = self.graph if constants is None else replace(self.graph, constants=constants)
        return fold_batch_norm(simplified(in_evaluation(graph)))


def _numbers(graph: Graph, names: Collection[str]) -> list[str]:
    """Those of a graph's constants that have one value."""
    return [name for name, t in graph.constants.items() if name in names and t.numel() == 1]


def _readers(graph: Graph, name: str) -> int:
    return sum(name in node.refs() for node in graph.nodes)


class TrainingProgram:
    """The steps of a training graph, and what has been rounded so far, under which name.

    Args:
        model: what is trained.
        plan: of the deployed graph.
        fake_quantizers: tensor that has a range of its own -> its module.
        mode: what dropout and batch norms ask.
        norm_modules: batch norm -> the module that holds its tensors.
        device: where tensors are made that an operator makes anew.
    """

    def __init__(
        self,
        model: TrainingGraph,
        plan: Plan,
        fake_quantizers: Mapping[str, FakeQuantize],
        mode: Mode,
        norm_modules: Mapping[str, nn.Module],
        device: torch.device,
    ) -> None:
        self.norm_modules = norm_modules
        self.model, self.plan, self.mode, self.device = model, plan, mode, device
        self.fake_quantizers = fake_quantizers
        self.folded = {norm.name: layer for layer, norm in model.norms.items()}
        self.roundings: dict[str, str] = {}
        self.dynamic: dict[tuple[str, Any], str] = {}
        self.read_as_integers = _read_as_integers(model.graph, plan)
        layers = quantized_layers(model.deployed(), plan)
        # Layer with integer biases -> the tensor that it reads.
        self.sums = {
            layer.name: layer.input
            for layer in filter(IntegerBiases().fits, layers)
            if layer.bias is not None and layer.input is not None
        }

    def written(self) -> tuple[list[Step], list[str]]:
        """The steps in order, and the names of the results."""
        steps = [step for entry in self.model.graph.inputs for step in self.rounded(entry.name)]
        for node in self.model.graph.nodes:
            if node.name not in self.folded:
                steps += self.steps(node)
        outputs = self.model.graph.output_names()
        read = self.names(outputs, as_integers=False)
        return steps, [read.get(name, name) for name in outputs]

    def steps(self, node: Node) -> Iterator[Step]:
        """A node, behind the rounding of what it reads, and before that of what it makes."""
        # Weight and bias of some layers are rounded by the step that runs the layer.
        inside = node.name in self.model.norms or node.name in self.sums
        weight = arguments(node)["weight"].name if inside else None
        outside = [name for name in node.refs() if name != weight]
        tied_in_float = not self.plan.reads_integers(node.name)
        for name in () if tied_in_float else dict.fromkeys(outside):
            yield from self._rounded_weight(name)
        values = [n for n in outside if not (tied_in_float and n in self.model.graph.constants)]
        read = node.renamed(self.names(values, node.name in self.read_as_integers))
        planned = self.plan.tensors.get(node.name)
        if planned is not None and planned.dynamic is not None:
            made, read = self._dynamic_input(read, planned.dynamic)
            yield from made
        yield self._step(read, self._may_overwrite(node))
        yield from self.rounded(node.name)

    def rounded(self, name: str) -> Iterator[Step]:
        """The step that rounds a value, where the plan quantizes it and something shows its range.

        What only moves integers makes none that are new.
        """
        planned = self.plan.quantized.get(name)
        if planned is None or planned.kind == "weight":
            return
        if planned.shares is not None and ROLES.get(planned.op) == SHARED:
            return
        self.roundings[name] = f"{name}.rounded"
        module = self.fake_quantizers[planned.shares or name]
        yield Step(f"{name}.rounded", module, (Ref(name),))

    def _rounded_weight(self, name: str) -> Iterator[Step]:
        """A weight is rounded once."""
        planned = self.plan.quantized.get(name)
        if planned is not None and planned.kind == "weight" and name not in self.roundings:
            self.roundings[name] = f"{name}.rounded"
            yield Step(f"{name}.rounded", self.fake_quantizers[name], (Ref(name),))

    def _layer_rounding(self, node: Node) -> LayerRounding:
        weight = self.fake_quantizers.get(arguments(node)["weight"].name)
        input_rounding = self.sums.get(node.name)
        if input_rounding is None:
            return LayerRounding(weight)
        source = self.plan.tensors[input_rounding].shares or input_rounding
        return LayerRounding(weight, self.fake_quantizers[source])

    def names(self, values: Iterable[str], as_integers: bool) -> dict[str, str]:
        """What is read instead of values: of those that integers stand for, the rounded one.

        What is read as float is rounded if an int8 kernel made it, or if it is a weight.
        """
        names = dict(self.folded)
        for name in values:
            source = self.folded.get(name, name)
            is_rounded = (
                as_integers or self.plan.runs_int8(source) or source in self.model.graph.constants
            )
            if is_rounded and source in self.roundings:
                names[name] = self.roundings[source]
        return names

    def _dynamic_input(self, node: Node, spec: Any) -> tuple[list[Step], Node]:
        source, scheme = node.args[0], spec.scheme
        name = self.dynamic.get((source.name, spec))
        steps = []
        if name is None:
            name = self.dynamic[source.name, spec] = f"{node.name}.dynamic input"
            args = (source, scheme.qmin, scheme.qmax, scheme.symmetric, scheme.per_token)
            steps.append(Step(name, rounding.fake_quantize_dynamic, args))
        return steps, with_arguments(node, input=Ref(name))

    def _may_overwrite(self, node: Node) -> bool:
        """Whether an activation can be written over what it reads, as models do to save memory:
        nothing else reads that, and its own gradient does not need it.
        """
        if node.op not in _IN_PLACE:
            return False
        name = node.args[0].name
        producer = self.model.graph.by_name.get(name)
        source = self.folded.get(name, name)
        alone = self.model.graph.only_user(name) == node
        kept = producer is None or producer.short_op not in _OUTPUT_NOT_KEPT
        return alone and not kept and source not in self.roundings

    def _step(self, node: Node, overwrite: bool) -> Step:
        """One operator: with its norm, with the mode of the moment, or as it stands."""
        plain = step_of(node, self.device)
        planned = self.plan.tensors.get(node.name)
        if planned is not None and planned.runs == "bfloat16":
            plain = replace(plain, function=_in_bfloat16(plain.function))
        if overwrite:
            return replace(plain, function=_IN_PLACE[node.op])
        norm = self.model.norms.get(node.name)
        if norm is not None:
            rest = arguments(node)
            args = [rest.pop(name) for name in ("input", "weight", "bias")]
            layer = LayerWithNorm(
                partial(plain.function, **rest),
                BatchNorm.of(norm, self.norm_modules.get(norm.name)),
                Folding.of(node, norm),
                self._layer_rounding(node),
                self.mode,
            )
            return Step(node.name, layer, (*args, *tensors_of(norm)))
        if node.name in self.sums:
            return replace(plain, function=self._layer_rounding(node).before(plain.function))
        if rounds_probabilities(node, self.plan):
            rounded = with_rounded_probabilities(node)
            return Step(node.name, rounding.attention, rounded.args)
        flag = training_flag(node)
        if flag is None:
            return plain
        flagged = _flagged(plain.function, flag, self.mode)
        if node.short_op == "batch_norm":
            alone = BatchNorm.of(node, self.norm_modules.get(node.name))
            flagged = _norm(alone, plain.function, self.mode)
        settings = {name: value for name, value in arguments(node).items() if name != flag}
        return Step(node.name, flagged, (), settings)


_IN_PLACE: Mapping[str, Callable[..., Any]] = {
    "aten.relu.default": torch.ops.aten.relu_.default,
    "aten.hardtanh.default": torch.ops.aten.hardtanh_.default,
}
# The gradients of these do not need their results.
_OUTPUT_NOT_KEPT = frozenset("add batch_norm linear conv1d conv2d conv3d".split())


def _in_bfloat16(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer as `octavo.quantization.bfloat16` deploys it: bfloat16 tensors, a float32 result."""

    def call(*args: Any, **rest: Any) -> Tensor:
        narrow = [a.to(torch.bfloat16) if isinstance(a, Tensor) else a for a in args]
        return function(*narrow, **rest).to(torch.float32)

    return call


def _norm(norm: BatchNorm, function: Callable[..., Any], mode: Mode) -> Callable[..., Any]:
    """A batch norm that no layer takes in."""

    def call(**given: Any) -> Any:
        if mode.batch_statistics(norm.module):
            return norm(given["input"], *(given[name] for name in NORM_TENSORS))
        return function(**given, training=False)

    return call


def _flagged(function: Callable[..., Any], flag: str, mode: Mode) -> Callable[..., Any]:
    """An operator that is told at each call whether the model is training."""

    def call(**given: Any) -> Any:
        return function(**given, **{flag: mode.training})

    return call


def _read_as_integers(graph: Graph, plan: Plan) -> set[str]:
    """The nodes that read rounded values: those in int8, and what stands only in training (a
    dropout) before one of them.
    """
    names = {node.name for node in graph.nodes if plan.runs_int8(node.name)}
    for node in reversed(graph.nodes):
        only_in_training = node.name not in plan.tensors
        if only_in_training and any(user.name in names for user in graph.users[node.name]):
            names.add(node.name)
    return names
