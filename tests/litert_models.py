"""A layer between two others, quantized, and run by LiteRT beside the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor, nn

import octavo
from octavo.graph.cuts import Cuts
from octavo.measuring.parity import LayerParity, _compared_layers
from octavo.numerics.observers import MinMax
from octavo.numerics.scheme import Scheme
from octavo.quantization.qconfig import QConfig, QSpec
from octavo.runtimes.options import Options

SHARE = 1e-3  # of integers that may be another one, a step away

SIXTEEN = QConfig(  # activations of int16, as LiteRT has them
    QSpec(Scheme("int16", symmetric=True), MinMax()), octavo.static_qconfig("edge").weight
)


class Between(nn.Module):
    """A function of what a convolution gives, read by another: all of it is integers."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 8) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, channels, 3, padding=1)
        self.other = nn.Conv2d(3, channels, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        if isinstance(self.function, nn.Module):
            return self.function(before)
        names = self.function.__code__.co_varnames[: self.function.__code__.co_argcount]
        return self.function(*(before, self.other(x))[: len(names)])


@dataclass(frozen=True)
class Run:
    """What LiteRT made of a model.

    Attributes:
        layers: each against the oracle, given what the oracle gave it.
        kernels: node -> its operators.
        operators: of all nodes but for the file's ends.
        model: the quantized model.
    """

    layers: tuple[LayerParity, ...]
    kernels: dict[str, list[str]]
    operators: set[str]
    model: octavo.QuantizedModel


def run(model: nn.Module, *tensors: Tensor, kernels: str = "xnnpack", **how: Any) -> Run:
    pytest.importorskip("ai_edge_litert")
    from octavo.runtimes.litert.export import to_tflite
    from octavo.runtimes.litert.runtime import Programs

    how = {"calibration": [tensors], "target": "edge", **how}
    q = octavo.quantize(model.eval(), tensors, progress=False, **how)
    cuts = Cuts.of(q.graph, tensors)
    layers = _compared_layers(cuts, Programs(cuts.graph, Options(), kernels).run)
    written = to_tflite(q.graph).kernels
    ends = {*q.graph.input_names(), *q.graph.output_names()}
    names = {name: list(kinds) for name, kinds in written.items()}
    own = {kind for name, kinds in names.items() for kind in kinds if not _is_end(name, ends)}
    return Run(layers, names, own, q)


def _is_end(name: str, ends: set[str]) -> bool:
    return name in ends or name.removesuffix(".quantized") in ends
