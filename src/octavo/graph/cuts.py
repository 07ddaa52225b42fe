"""A quantized graph cut into its layers, so that each can be given values of one's choice.

A difference at one layer changes what all later layers read. Here the graph is cut wherever
integers begin: a value goes in at each cut, and what the layers make of it comes out at the next,
so that one run shows what every layer does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.operators import arguments, with_arguments
from octavo.graph.program import run_of
from octavo.graph.qdq import (
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    DEQUANTIZED,
    DYNAMIC,
    QUANTIZE,
    UNPACK,
    is_own,
    rounding_behind,
)
from octavo.graph.rewrite import rewrite
from octavo.numerics.octavo_operators import dequantize


@dataclass(frozen=True)
class Cuts:
    """The cut graph, and what the oracle computes on one batch.

    Attributes:
        graph: with an input for each cut, behind its own, and each layer's value as an output.
        whole: the graph as it was, with the same outputs.
        inputs: the batch.
        given: what goes in at the cuts: the oracle's values, in float.
        outputs: what should come out: the oracle's values.
        sources: for each cut the layer that makes its value.
        layers: for each output the layer that makes it.
        scales: of each output's integers; ``None`` for floats.
        zero_points: likewise.
    """

    graph: Graph
    whole: Graph
    inputs: tuple[Tensor, ...]
    given: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sources: tuple[str, ...]
    layers: tuple[str, ...]
    scales: tuple[float | None, ...]
    zero_points: tuple[int | None, ...]

    @classmethod
    def of(cls, graph: Graph, batch: Sequence[Tensor], also: Sequence[str] = ()) -> Cuts:
        """Cut where a quantized tensor is read as floats, and where floats meet integer weights.

        Args:
            graph: a canonical quantized graph.
            batch: its inputs.
            also: values that shall be outputs too; nothing is cut there.
        """
        cut = _cut_values(graph)
        # What is returned of rounded values are the integers that a cut gives, read again.
        returned = [name for name in graph.output_names() if not _reads(name, cut, graph)]
        names = tuple(dict.fromkeys([*cut, *also, *returned]))
        whole = replace(graph, outputs=[Ref(name) for name in names]).pruned()
        values = run_of(whole, _device_of(batch))(*batch)
        oracle = dict(zip(names, values, strict=True))
        nodes = [graph.by_name[name] for name in names if name in graph.by_name]
        integers = {node.name: arguments(node) for node in nodes if node.op == QUANTIZE}
        given = [
            dequantize(oracle[name], integers[name]["scale"], integers[name]["zero_point"])
            if name in integers
            else oracle[name]
            for name in cut
        ]
        inputs = [
            Input(_given(name), TensorMeta.of(value), tuple(value.shape))
            for name, value in zip(cut, given, strict=True)
        ]
        outputs = [Ref(name) for name in names]
        ready = replace(graph, inputs=(*graph.inputs, *inputs), outputs=outputs)
        return cls(
            rewrite(ready, lambda node: _reading_given(node, graph, frozenset(cut))),
            whole,
            tuple(batch),
            tuple(given),
            tuple(oracle[name] for name in names),
            tuple(_layer_of(name, graph) for name in cut),
            tuple(_layer_of(name, graph) for name in names),
            tuple(integers.get(name, {}).get("scale") for name in names),
            tuple(integers.get(name, {}).get("zero_point") for name in names),
        )

    def expecting(self, oracle: Callable[..., Sequence[Tensor]] | None) -> Cuts:
        """With what another oracle makes of what is given as what should come out.

        Args:
            oracle: of the cut graph; ``None`` for what this one says.
        """
        if oracle is None:
            return self
        return replace(self, outputs=tuple(oracle(*self.inputs, *self.given)))

    def pieces(self) -> Iterator[Piece]:
        """The cut graph's layers one by one, each with what goes into it."""
        names = self.graph.input_names()
        values = dict(zip(names, (*self.inputs, *self.given), strict=True))
        for end in self.graph.output_names():
            whole = replace(self.graph, outputs=Ref(end), guards=()).pruned()
            read = {name for node in whole.nodes for name in node.refs()} | {end}
            inputs = tuple(entry for entry in whole.inputs if entry.name in read)
            arguments = {entry.name: Ref(entry.name) for entry in inputs}
            graph = replace(whole, inputs=inputs, arguments=arguments)
            yield Piece(end, graph, tuple(values[entry.name] for entry in inputs))


@dataclass(frozen=True)
class Piece:
    """What stands between two cuts: what one int8 kernel runs, or a layer without a kernel.

    Attributes:
        end: the value that it makes.
        graph: from the floats that it quantizes again first, or inputs of the model, to that value.
        inputs: these, as the oracle has them.
    """

    end: str
    graph: Graph
    inputs: tuple[Tensor, ...]

    @property
    def layers(self) -> tuple[Node, ...]:
        """The model's own operators in it, in order."""
        return tuple(node for node in self.graph.nodes if not is_own(node))

    @property
    def entries(self) -> tuple[str, ...]:
        """The integers that it reads."""
        quantized = [node.name for node in self.graph.nodes if node.op == QUANTIZE]
        return tuple(name for name in quantized if name != self.end)


def _cut_values(graph: Graph) -> list[str]:
    """The values that are given: all that integers begin with, but for inputs and constants."""
    known = set(graph.input_names()) | set(graph.constants)
    known |= {node.name for node in graph.nodes if node.op == UNPACK}  # weights, as constants are
    read = dict.fromkeys(name for node in graph.nodes for name in _cut_inputs(node, graph))
    return [name for name in read if name not in known]


def _reading_given(node: Node, graph: Graph, cut: frozenset[str]) -> Iterator[Node]:
    """The node reading what is given; what was read as integers is quantized again."""
    names = {n: _given(n) for n in _cut_inputs(node, graph) if n in cut}
    source = graph.by_name[next(iter(names))] if names else None
    if source is not None and node.op == DEQUANTIZE and source.op == QUANTIZE:
        again = f"{node.name}.again"
        yield replace(with_arguments(source, x=Ref(_given(source.name))), name=again)
        yield with_arguments(node, q=Ref(again))
    else:
        yield node.renamed(names)


def _cut_inputs(node: Node, graph: Graph) -> list[str]:
    """The values at which a node's own reading of integers begins."""
    if node.op in (DEQUANTIZE, DYNAMIC):
        return [node.args[0].name]
    names = list(node.refs())
    made_by = {name: graph.by_name[name].op for name in names if name in graph.by_name}
    if DEQUANTIZE_WEIGHT in made_by.values() and not is_own(node):
        return [name for name in names[:1] if made_by.get(name, DEQUANTIZE) not in DEQUANTIZED]
    return []


def _given(name: str) -> str:
    return f"{name}.given"


def _layer_of(name: str, graph: Graph) -> str:
    """The layer behind a quantize node."""
    node = graph.by_name.get(name)
    return node.args[0].name if node is not None and node.op == QUANTIZE else name


def _reads(name: str, cut: Sequence[str], graph: Graph) -> bool:
    """Whether a value is read from the integers of a cut."""
    source = rounding_behind(graph, Ref(name))
    return source is not None and source.name in cut


def _device_of(batch: Sequence[Tensor]) -> torch.device:
    return next((tensor.device for tensor in batch), torch.device("cpu"))
