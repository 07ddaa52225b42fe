"""What depends on sizes alone is computed once for each, and nothing else is."""

from __future__ import annotations

import operator

import pytest
import torch

from octavo.graph.graph import Ref
from octavo.graph.program import Step, compile_steps
from octavo.runtimes.torch import remembered
from octavo.runtimes.torch.remembered import Remembered, fixed_by_sizes, with_remembered

ATEN = torch.ops.aten
CONSTANTS = {"table": torch.arange(40.0).reshape(20, 2)}
STEPS = [
    Step("n", ATEN.sym_size.int, (Ref("x"), 0)),
    Step("m", operator.add, (Ref("n"), 1)),
    Step("at", ATEN.arange.default, (Ref("m"),)),
    Step("places", ATEN.index_select.default, (Ref("table"), 0, Ref("at"))),
    Step("cut", ATEN.slice.Tensor, (Ref("places"), 0, 1)),
    Step("chance", ATEN.rand.default, ([Ref("n"), 2],)),
    Step("y", ATEN.add.Tensor, (Ref("x"), Ref("cut"))),
    Step("z", ATEN.add.Tensor, (Ref("y"), Ref("chance"))),
]


def run(outputs):
    fixed = fixed_by_sizes(STEPS, ["x"], CONSTANTS)
    steps = with_remembered(STEPS, fixed, outputs, CONSTANTS)
    return steps, compile_steps(["x"], steps, outputs, CONSTANTS)


def test_numbers_and_what_is_computed_of_them_and_of_constants_is_fixed():
    fixed = fixed_by_sizes(STEPS, ["x"], CONSTANTS)
    assert fixed.numbers == {"n", "m"}
    assert fixed.tensors == {"at", "places", "cut"}


def test_a_size_of_what_is_computed_is_not():
    steps = [
        Step("k", ATEN.nonzero.default, (Ref("x"),)),
        Step("n", ATEN.sym_size.int, (Ref("k"), 0)),
        Step("at", ATEN.arange.default, (Ref("n"),)),
    ]
    fixed = fixed_by_sizes(steps, ["x"], {})
    assert not fixed.numbers
    assert not fixed.tensors


def test_it_is_computed_once_for_each_size(monkeypatch):
    steps, call = run(["y"])
    (whole,) = (step for step in steps if isinstance(step.function, Remembered))
    count = []
    compute = whole.function.compute
    whole.function.compute = lambda *sizes: count.append(sizes) or compute(*sizes)
    for rows in (3, 5, 3, 3, 5):
        x = torch.randn(rows, 2)
        assert torch.equal(call(x)[0], x + CONSTANTS["table"][1 : rows + 1])
    assert count == [(4,), (6,)]
    monkeypatch.setattr(remembered, "MOST_SIZES", 1)
    for rows in (7, 3, 7):
        call(torch.randn(rows, 2))
    assert count[2:] == [(8,), (4,), (8,)]


def test_too_much_is_not_kept(monkeypatch):
    monkeypatch.setattr(remembered, "MOST_BYTES", 8)
    steps, call = run(["y"])
    x = torch.randn(3, 2)
    assert torch.equal(call(x)[0], x + CONSTANTS["table"][1:4])
    assert not any(s.function._kept for s in steps if isinstance(s.function, Remembered))


def test_a_result_is_the_callers():
    _, call = run(["cut", "y"])
    x = torch.randn(3, 2)
    cut, _ = call(x)
    kept = cut.clone()
    cut.zero_()
    again, y = call(x)
    assert torch.equal(again, kept)
    assert torch.equal(y, x + kept)


def test_neither_is_a_view_of_it():
    steps = [
        *STEPS[:5],
        Step("seen", ATEN.expand_as.default, (Ref("cut"), Ref("x"))),
        Step("turned", ATEN.t.default, (Ref("seen"),)),
    ]
    outputs = ["turned", "seen"]
    fixed = fixed_by_sizes(steps, ["x"], CONSTANTS)
    kept = with_remembered(steps, fixed, outputs, CONSTANTS)
    call = compile_steps(["x"], kept, outputs, CONSTANTS)
    x, right = torch.randn(3, 2), CONSTANTS["table"][1:4].clone()
    for _ in range(2):
        for result, own in zip(call(x), (right.T, right), strict=True):
            assert torch.equal(result, own)
            result.zero_()


def test_chance_is_not_remembered():
    _, call = run(["z"])
    x = torch.zeros(3, 2)
    assert not torch.equal(call(x)[0], call(x)[0])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_what_was_remembered_in_one_mode_is_read_in_another(mode):
    _, call = run(["y"])
    with mode():
        call(torch.randn(3, 2))
    x = torch.randn(3, 2, requires_grad=True)
    call(x)[0].sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 2))


def test_what_is_compiled_is_compiled_once_for_all_sizes():
    steps, call = run(["y"])
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: call(x)[0], backend=backend, dynamic=True)
    for rows in (3, 5, 7, 5):
        x = torch.randn(rows, 2)
        assert torch.equal(compiled(x), x + CONSTANTS["table"][1 : rows + 1])
    assert len(graphs) == 1
    (whole,) = (step for step in steps if isinstance(step.function, Remembered))
    assert not whole.function._kept


def test_sizes_that_are_exported_stay_open():
    class Called(torch.nn.Module):
        def forward(self, x):
            return run(["y"])[1](x)[0]

    sizes = ({0: torch.export.Dim("rows", max=18)},)
    exported = torch.export.export(
        Called(), (torch.randn(3, 2),), dynamic_shapes=sizes, strict=False
    )
    x = torch.randn(7, 2)
    assert torch.equal(exported.module()(x), x + CONSTANTS["table"][1:8])
