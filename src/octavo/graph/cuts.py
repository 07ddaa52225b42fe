"""A quantized graph cut into its layers, so that each can be given values of one's choice.

A difference at one layer changes what all later layers read. Here the graph is cut wherever
integers begin: a value goes in at each cut, and what the layers make of it comes out at the next,
so that one run shows what every layer does by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.program import run_of
from octavo.graph.qdq import (
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    DEQUANTIZED,
    DYNAMIC,
    QUANTIZE,
    UNPACK,
    is_own,
)


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
        producers = graph.by_name
        cut = _cut_values(graph, producers)
        names = tuple(dict.fromkeys([*cut, *also, *graph.output_names()]))
        whole = replace(graph, outputs=[Ref(name) for name in names]).pruned()
        values = run_of(whole, _device_of(batch))(*batch)
        oracle = dict(zip(names, values, strict=True))
        integers = {n: producers[n] for n in names if _is(producers.get(n), QUANTIZE)}
        given = [
            (oracle[name].to(torch.float32) - integers[name].args[2]) * integers[name].args[1]
            if name in integers
            else oracle[name]
            for name in cut
        ]
        inputs = [
            Input(_given(name), TensorMeta.of(value), tuple(value.shape))
            for name, value in zip(cut, given, strict=True)
        ]
        pieces = replace(
            graph,
            inputs=(*graph.inputs, *inputs),
            nodes=_cut_nodes(graph, producers, frozenset(cut)),
            outputs=[Ref(name) for name in names],
        )
        return cls(
            pieces.pruned(),
            whole,
            tuple(batch),
            tuple(given),
            tuple(oracle[name] for name in names),
            tuple(_layer_of(name, producers) for name in cut),
            tuple(_layer_of(name, producers) for name in names),
            tuple(integers[n].args[1] if n in integers else None for n in names),
            tuple(integers[n].args[2] if n in integers else None for n in names),
        )

    def pieces(self) -> Iterator[Piece]:
        """The cut graph's layers one by one, each with what goes into it."""
        names = [given.name for given in self.graph.inputs]
        values = dict(zip(names, (*self.inputs, *self.given), strict=True))
        for end in self.graph.output_names():
            whole = replace(self.graph, outputs=Ref(end), guards=()).pruned()
            read = {name for node in whole.nodes for name in node.refs()} | {end}
            inputs = tuple(given for given in whole.inputs if given.name in read)
            arguments = {given.name: Ref(given.name) for given in inputs}
            graph = replace(whole, inputs=inputs, arguments=arguments)
            yield Piece(end, graph, tuple(values[given.name] for given in inputs))


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


def _cut_values(graph: Graph, producers: Mapping[str, Node]) -> list[str]:
    """The values that are given: all that integers begin with, but for inputs and constants."""
    known = {given.name for given in graph.inputs} | set(graph.constants)
    known |= {node.name for node in graph.nodes if node.op == UNPACK}  # weights, as constants are
    read = dict.fromkeys(name for node in graph.nodes for name in _cut_inputs(node, producers))
    return [name for name in read if name not in known]


def _cut_nodes(
    graph: Graph, producers: Mapping[str, Node], cut: frozenset[str]
) -> tuple[Node, ...]:
    """The nodes reading what is given; what was read as integers is quantized again."""
    nodes = []
    for node in graph.nodes:
        names = {n: _given(n) for n in _cut_inputs(node, producers) if n in cut}
        source = producers[next(iter(names))] if names else None
        if source is not None and node.op == DEQUANTIZE and source.op == QUANTIZE:
            again = f"{node.name}.again"
            args = (Ref(_given(source.name)), *source.args[1:])
            nodes.append(replace(source, name=again, args=args))
            nodes.append(replace(node, args=(Ref(again), *node.args[1:])))
        else:
            nodes.append(node.renamed(names))
    return tuple(nodes)


def _cut_inputs(node: Node, producers: Mapping[str, Node]) -> list[str]:
    """The values at which a node's own reading of integers begins."""
    if node.op in (DEQUANTIZE, DYNAMIC):
        return [node.args[0].name]
    names = list(node.refs())
    made_by = {name: producers[name].op for name in names if name in producers}
    if DEQUANTIZE_WEIGHT in made_by.values() and not is_own(node):
        return [name for name in names[:1] if made_by.get(name, DEQUANTIZE) not in DEQUANTIZED]
    return []


def _given(name: str) -> str:
    return f"{name}.given"


def _is(node: Node | None, op: str) -> bool:
    return node is not None and node.op == op


def _layer_of(name: str, producers: Mapping[str, Node]) -> str:
    """The layer behind a quantize node."""
    node = producers.get(name)
    return node.args[0].name if node is not None and node.op == QUANTIZE else name


def _device_of(batch: Sequence[Tensor]) -> torch.device:
    return next((tensor.device for tensor in batch), torch.device("cpu"))
