"""Each layer of a quantized graph by itself on two runtimes, on the oracle's integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.graph.cuts import Cuts, Piece
from octavo.graph.graph import Graph, Ref
from octavo.runtimes import lower

FLOAT_STEPS = 255  # a float result is measured in steps as if it were quantized to 8 bits


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


def record(graph: Graph, names: set[str], *inputs: Tensor) -> dict[str, Tensor]:
    """These values of the graph, as the reference runtime computes them."""
    given = dict(zip([value.name for value in graph.inputs], inputs, strict=True))
    wanted = tuple(sorted(names - given.keys()))
    run = lower(
        replace(graph, outputs=tuple(map(Ref, wanted))), "reference", torch.device("cpu")
    ).run
    with torch.no_grad():
        return given | dict(zip(wanted, run(*inputs), strict=True))


def agreements(graph: Graph, *inputs: Tensor) -> Iterator[Agreement]:
    """Of every layer of a QDQ graph, in its order."""
    return (agreement(piece) for piece in Cuts.of(graph, inputs).pieces())


def agreement(piece: Piece, runtime: str = "torch") -> Agreement:
    """Run a piece on the reference and on another runtime, on the same values."""
    device = torch.device("cpu")
    lowered = lower(piece.graph, runtime, device)
    with torch.no_grad():
        (want,) = lower(piece.graph, "reference", device).run(*piece.inputs)
        (have,) = lowered.run(*piece.inputs)
    if want.is_floating_point():
        step = (want.max() - want.min()).clamp(min=1e-30) / FLOAT_STEPS
        want, have = (want / step).round(), (have / step).round()
    difference = (want.to(torch.int64) - have.to(torch.int64)).abs()
    kernels = dict.fromkeys(lowered.kernels.get(node.name, "float") for node in piece.layers)
    return Agreement(
        name=piece.end.removesuffix(".quantized"),
        ops="+".join(node.short_op for node in piece.layers) or "quantize",
        kernel="+".join(kernels) or "quantize",
        values=difference.numel(),
        equal=int((difference == 0).sum()),
        max_step=int(difference.max()),
    )
