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

import torch
from torch import Tensor

from octavo.graph.cuts import Cuts, Piece
from octavo.graph.graph import Ref
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS
from octavo.model.model import QuantizedModel
from octavo.quantization.float_graph import without_rounding
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


def layer_times(
    q: QuantizedModel, tensors: Sequence[Tensor], budget_s: float = BUDGET_S
) -> tuple[LayerTime, ...]:
    """The layers with weights that run on fixed scales, in the order of the graph.

    Args:
        q: the quantized model.
        tensors: what its graph takes, see `octavo.graph.calls.flatten_call`.
        budget_s: seconds to measure for.
    """
    calls: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        pieces = [
            piece
            for piece in Cuts.of(q.graph, tensors).pieces()
            if piece.entries and _with_weights(piece)
        ]
        for piece in pieces:
            calls |= _calls(piece, q.device)
        latencies = interleave(calls, budget_s=budget_s)
    return tuple(time for piece in pieces for time in _times(piece, latencies))


def _with_weights(piece: Piece) -> list[str]:
    return [node.name for node in piece.layers if node.short_op in WEIGHT_LAYOUTS]


def _calls(piece: Piece, device: torch.device) -> dict[str, Callable[[], object]]:
    """What is timed.

    A kernel reads what a quantize step made, so its graph has that step in it, and the time of the
    step alone is taken off.
    """
    entry = replace(piece.graph, outputs=[Ref(name) for name in piece.entries]).pruned()
    graphs = {"float": without_rounding(piece.graph), "int8": piece.graph, "entry": entry}
    return {
        f"{piece.end} {what}": partial(lower(graph, "torch", device).run, *piece.inputs)
        for what, graph in graphs.items()
    }


def _times(piece: Piece, latencies: Mapping[str, Latency]) -> Iterator[LayerTime]:
    in_float, int8, entry = (
        [statistics.median(turn) for turn in latencies[f"{piece.end} {what}"].rounds]
        for what in ("float", "int8", "entry")
    )
    own = [whole - part for whole, part in zip(int8, entry, strict=True)]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(own, in_float, strict=True))
    for layer in _with_weights(piece):
        yield LayerTime(
            layer,
            statistics.median(in_float),
            statistics.median(own),
            ratio,
            statistics.median(entry),
        )
