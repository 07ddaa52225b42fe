"""How long each layer takes on this CPU, in int8 and in float.

The quantized graph is cut where integers are made: from the integers that a layer reads to those
that it makes is what runs as one kernel, fused activations included. The same piece without its
rounding is the layer in float. A float island has to be quantized around: what that costs is about
what quantizing the layer's input takes, which is timed too. A candidate with such islands is
measured as a whole all the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.qdq import QUANTIZE
from octavo.graph.weighted_layers import WEIGHTED_LAYERS
from octavo.model.model import QuantizedModel
from octavo.numerics.octavo_ops import dequantize
from octavo.quantization.unrounded import without_rounding
from octavo.runtimes import lower
from octavo.runtimes.timing import Latency, interleave

BUDGET_S = 4.0  # for all layers together; each has five rounds at least
SLOWER = 1.1  # times float: what counts as slower, and not as chance


@dataclass(frozen=True)
class LayerTime:
    """One layer's time for the batch that latencies are measured on.

    Attributes:
        layer: its name.
        float_s, int8_s: median seconds.
        int8_over_float: the median ratio of interleaved rounds.
        quantize_s: median seconds to quantize what it reads.
    """

    layer: str
    float_s: float
    int8_s: float
    int8_over_float: float
    quantize_s: float = 0.0

    @property
    def slower(self) -> bool:
        """Whether int8 makes it slower, by more than chance and than a float island costs."""
        gain = self.int8_s - self.float_s
        return self.int8_over_float > SLOWER and gain > self.quantize_s


def layer_times(q: QuantizedModel, tensors: Sequence[Tensor]) -> tuple[LayerTime, ...]:
    """The layers with weights that run on fixed scales, in the order of the graph.

    Args:
        q: the quantized model.
        tensors: what its graph takes, see `octavo.graph.calls.flatten_call`.
    """
    graph = q.graph
    pieces = list(_pieces(graph))
    read = tuple(dict.fromkeys(name for piece in pieces for name in piece.reads))
    whole = replace(graph, outputs=[Ref(name) for name in read]).pruned()
    calls: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        values = dict(zip(read, lower(whole, "torch", q.device).run(*tensors), strict=True))
        for piece in pieces:
            calls |= _calls(piece, graph, values, q.device)
        found = interleave(calls, budget_s=BUDGET_S)
    return tuple(time for piece in pieces for time in _times(piece, found))


@dataclass(frozen=True)
class _Piece:
    """From the values that are read to the one that is made.

    Attributes:
        layers: those with weights.
        reads: integers, or inputs of the model.
        nodes: between these and the end, in order.
        end: the value that is made.
    """

    layers: tuple[str, ...]
    reads: tuple[str, ...]
    nodes: tuple[Node, ...]
    end: str


def _pieces(graph: Graph) -> Iterator[_Piece]:
    """Those that have layers with weights and read integers."""
    made = [node.name for node in graph.nodes if node.op == QUANTIZE]
    for end in dict.fromkeys([*made, *graph.output_names()]):
        reads: dict[str, None] = {}
        inside, todo = set[str](), [end]
        while todo:
            name = todo.pop()
            node = graph.by_name.get(name)
            if name in inside or name in graph.constants:
                continue
            if node is None or (node.op == QUANTIZE and name != end):
                reads[name] = None
            else:
                inside.add(name)
                todo += node.refs()
        nodes = tuple(node for node in graph.nodes if node.name in inside)
        layers = tuple(n.name for n in nodes if n.short_op in WEIGHTED_LAYERS)
        if layers and any(name in graph.by_name for name in reads):
            yield _Piece(layers, tuple(reads), nodes, end)


def _calls(
    piece: _Piece, graph: Graph, values: Mapping[str, Any], device: torch.device
) -> dict[str, Callable[[], object]]:
    """What is timed.

    A kernel reads what a quantize step made, so its graph has that step in it, and the time of the
    step alone is taken off.
    """
    int8, inputs = _graph_of(piece, graph, values)
    entry = replace(int8, outputs=[Ref(name) for name in piece.reads]).pruned()
    graphs = {"float": without_rounding(int8), "int8": int8, "entry": entry}
    return {
        f"{piece.end} {what}": partial(lower(made, "torch", device).run, *inputs)
        for what, made in graphs.items()
    }


def _times(piece: _Piece, found: Mapping[str, Latency]) -> Iterator[LayerTime]:
    in_float, int8, entry = (
        [statistics.median(turn) for turn in found[f"{piece.end} {what}"].rounds]
        for what in ("float", "int8", "entry")
    )
    own = [whole - part for whole, part in zip(int8, entry, strict=True)]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(own, in_float, strict=True))
    for layer in piece.layers:
        yield LayerTime(
            layer,
            statistics.median(in_float),
            statistics.median(own),
            ratio,
            statistics.median(entry),
        )


def _graph_of(piece: _Piece, graph: Graph, values: Mapping[str, Any]) -> tuple[Graph, list[Tensor]]:
    """The piece, with the floats that it quantizes again first, and these."""
    entries = {n: graph.by_name[n] for n in piece.reads if n in graph.by_name}
    given: dict[str, Tensor] = {}
    for name in piece.reads:
        entry = entries.get(name)
        if entry is None:
            given[name] = values[name]
        else:
            given[entry.args[0].name] = dequantize(values[name], *entry.args[1:3])
    inputs = tuple(Input(n, TensorMeta.of(t), tuple(t.shape)) for n, t in given.items())
    arguments = {name: Ref(name) for name in given}
    nodes = (*entries.values(), *piece.nodes)
    made = Graph(inputs, graph.constants, nodes, arguments, [Ref(piece.end)])
    return made.pruned(), list(given.values())
