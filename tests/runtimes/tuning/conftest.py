"""A small quantized model, and runtimes that are made up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.runtimes import RUNTIMES, Lowered, Options, Runtime

ALL_OPTIONS = ("threads", "batch", "joined", "channels_last", "programs")


class Branching(nn.Module):
    """A convolution, a depthwise one, a sum, pooling, and two layers that read the same."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left, self.right = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.stem(x))
        y = torch.relu(self.depthwise(y) + y).mean((2, 3))
        return self.left(y), self.right(y)


@pytest.fixture(scope="session")
def quantized() -> octavo.QuantizedModel:
    torch.manual_seed(0)
    data = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    target = octavo.host_target()
    return octavo.quantize(Branching(), calibration=data, target=target, progress=False)


@pytest.fixture
def graph(quantized: octavo.QuantizedModel) -> Graph:
    return quantized.graph


def plainly(graph: Graph, device: torch.device, options: Options) -> Lowered:
    return Lowered(run_of(graph, device), {}, {})


def wrongly(graph: Graph, device: torch.device, options: Options) -> Lowered:
    run = run_of(graph, device)
    return Lowered(lambda *tensors: tuple(1.5 * result for result in run(*tensors)), {}, {})


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Two runtimes that are the oracle, the second with all options, and one that is wrong."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    RUNTIMES["slow"] = Runtime(plainly)
    RUNTIMES["quick"] = Runtime(plainly, options=ALL_OPTIONS)
    RUNTIMES["wrong"] = Runtime(wrongly)
    yield "slow", "quick"
    for name in ("slow", "quick", "wrong"):
        del RUNTIMES[name]
