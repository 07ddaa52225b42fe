"""Each layer of a quantized graph as a graph of its own, to run alone on two runtimes.

A slice starts at quantized values and ends at the next quantized value, or at an output of the
model: it is what one int8 kernel runs, or a layer without a kernel. Since a graph is data, a slice
is made by picking nodes. Its inputs are the dequantized values; quantizing them again, which is the
slice's first step, gives the very integers they came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.qdq import QUANTIZE, is_own
from octavo.numerics import octavo_ops
from octavo.runtimes import lower

FLOAT_STEPS = 255  # a float result is measured in steps as if it were quantized to 8 bits


@dataclass(frozen=True)
class Slice:
    """A layer alone.

    Attributes:
        name: the value it computes.
        graph: from ``sources``, in order, to that value.
        sources: the recorded values that become its inputs: integers, or inputs of the model.
        layers: the nodes between.
    """

    name: str
    graph: Graph
    sources: tuple[str, ...]
    layers: tuple[Node, ...]

    @property
    def ops(self) -> str:
        return "+".join(node.short_op for node in self.layers) or "quantize"


@dataclass(frozen=True)
class Agreement:
    """How two runtimes' results differ, in quantization steps."""

    name: str
    ops: str
    kernel: str
    values: int
    equal: int
    max_step: int

    @property
    def equal_percent(self) -> float:
        return 100.0 * self.equal / self.values


def slices(graph: Graph) -> Iterator[Slice]:
    """All slices of a QDQ graph, in its order; together they hold all its nodes."""
    nodes = {node.name: node for node in graph.nodes}
    ends = [node.name for node in graph.nodes if node.op == QUANTIZE]
    ends += [name for name in dict.fromkeys(graph.output_names()) if name not in ends]
    for end in ends:
        inside: set[str] = set()
        reads: dict[str, str] = {}
        todo = [end]
        while todo:
            name = todo.pop()
            if name in inside or name in graph.constants:
                continue
            inside.add(name)
            node = nodes.get(name)
            if node is None:
                reads.setdefault(name, name)
            elif node.op == QUANTIZE and name != end:
                reads[node.args[0].name] = name  # the slice quantizes again what it is given
            else:
                todo += node.refs()
        yield _slice(graph, end, inside, reads)


def record(graph: Graph, names: set[str], *inputs: Tensor) -> dict[str, Tensor]:
    """These values of the graph, as the reference runtime computes them."""
    given = dict(zip([value.name for value in graph.inputs], inputs, strict=True))
    wanted = tuple(sorted(names - given.keys()))
    run = lower(
        replace(graph, outputs=tuple(map(Ref, wanted))), "reference", torch.device("cpu")
    ).run
    with torch.no_grad():
        return given | dict(zip(wanted, run(*inputs), strict=True))


def inputs_of(part: Slice, recorded: Mapping[str, Tensor]) -> list[Tensor]:
    """Float tensors that the slice's first steps turn into the recorded integers."""
    nodes = {node.name: node for node in part.graph.nodes}
    given = []
    for name in part.sources:
        node, value = nodes.get(name), recorded[name]
        if node is not None and node.op == QUANTIZE:
            value = octavo_ops.dequantize(value, *node.args[1:3])
        given.append(value)
    return given


def agreement(part: Slice, recorded: Mapping[str, Tensor], runtime: str = "torch") -> Agreement:
    """Run a slice on the reference and on another runtime, on the same recorded values."""
    device = torch.device("cpu")
    values = inputs_of(part, recorded)
    lowered = lower(part.graph, runtime, device)
    with torch.no_grad():
        (want,) = lower(part.graph, "reference", device).run(*values)
        (have,) = lowered.run(*values)
    if want.is_floating_point():
        step = (want.max() - want.min()).clamp(min=1e-30) / FLOAT_STEPS
        want, have = (want / step).round(), (have / step).round()
    difference = (want.to(torch.int64) - have.to(torch.int64)).abs()
    kernels = dict.fromkeys(lowered.kernels.get(node.name, "float") for node in part.layers)
    return Agreement(
        name=part.name.removesuffix(".quantized"),
        ops=part.ops,
        kernel="+".join(kernels) or "quantize",
        values=difference.numel(),
        equal=int((difference == 0).sum()),
        max_step=int(difference.max()),
    )


def _slice(graph: Graph, end: str, inside: set[str], reads: Mapping[str, str]) -> Slice:
    metas = graph.metas
    given = [_input(name, meta) for name in reads if (meta := metas[name]) is not None]
    picked = tuple(n for n in graph.nodes if n.name in inside and n.name not in reads)
    made = replace(
        graph,
        inputs=tuple(given),
        nodes=picked,
        arguments={name: Ref(name) for name in reads},
        outputs=(Ref(end),),
    ).pruned()
    layers = tuple(n for n in made.nodes if not is_own(n))
    return Slice(end, made, tuple(reads.values()), layers)


def _input(name: str, meta: TensorMeta) -> Input:
    return Input(name, meta, tuple(2 if size is None else size for size in meta.shape))
