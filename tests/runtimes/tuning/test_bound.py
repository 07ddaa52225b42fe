"""How far a variant's results may be from those in float."""

from __future__ import annotations

import torch

import octavo
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.quantization.float_graph import with_floats
from octavo.runtimes.tuning.bound import Bound

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_the_plan_and_what_is_more_precise_is_within(quantized: octavo.QuantizedModel) -> None:
    graph = quantized.graph
    bound = Bound.of(graph, [(X,), *quantized.check_inputs()])
    assert bound.broken_by(run_of(graph)) == ""
    for layers in (["stem"], ["stem", "depthwise"], list(graph.by_name)):
        assert bound.broken_by(run_of(with_floats(graph, layers))) == ""


def test_what_is_less_precise_is_not(graph: Graph) -> None:
    bound = Bound.of(graph, [(X,)])
    exact, plan = bound.exact[0], run_of(graph)

    def farther(by: float) -> str:
        return bound.broken_by(
            lambda x: tuple(e + by * (p - e) for e, p in zip(exact, plan(x), strict=True))
        )

    assert farther(1.1) == ""  # 1 dB is 1.122 times the error
    said = farther(1.15)
    assert "dB from those in float, where the plan's are" in said
    assert "cannot run" in bound.broken_by(lambda x: x.reshape(1000, 1000))


def test_inputs_that_the_oracle_cannot_run_on_are_left_out(graph: Graph) -> None:
    bound = Bound.of(graph, [(torch.randn(2, 5, 8, 8),), (X,)])
    assert len(bound.batches) == 1
    nothing = Bound.of(graph, [(torch.randn(2, 5, 8, 8),)])
    assert nothing.broken_by(run_of(graph)) == ""


def test_decisions_are_counted(quantized: octavo.QuantizedModel) -> None:
    class Picks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).argmax(-1)

    x = torch.randn(64, 8)
    q = octavo.quantize(Picks(), calibration=[x], target=octavo.host_target(), progress=False)
    bound = Bound.of(q.graph, [(x,)])
    wrong = bound.broken_by(lambda x: (torch.zeros(64, dtype=torch.int64),))
    assert "of 64 decisions" in wrong
