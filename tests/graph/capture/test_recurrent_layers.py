"""Recurrent layers are captured whole: the same graphs, in work that does not grow with steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence

from octavo.errors import CaptureError
from octavo.graph.capture import sizes_open, torch_export
from octavo.graph.capture.capture import capture
from octavo.graph.capture.recurrent_layers import WholeRecurrentLayers
from octavo.graph.graph import Graph

BATCH, STEPS = 6, 3  # other sizes than the layers have


class Calls(nn.Module):
    """A layer, and a function of it in place of ``forward``."""

    def __init__(self, layer: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.function = layer, function
        self.register_buffer("kept", torch.rand(BATCH, STEPS, 4))

    def forward(self, *args: Tensor) -> Any:
        return self.function(self, *args)


def layer(kind: str, **options: Any) -> nn.RNNBase:
    made: nn.RNNBase = getattr(nn, kind)(4, 5, **{"batch_first": True, **options})
    return made


def states(kind: str, rows: int, width: int = 5) -> tuple[Tensor, ...]:
    hidden = (torch.rand(rows, BATCH, width),)
    return (*hidden, torch.rand(rows, BATCH, 5)) if kind == "LSTM" else hidden


def given(m: Calls, x: Tensor, *hidden: Tensor) -> Any:
    return m.layer(x, hidden if len(hidden) == 2 else hidden[0])


def turned(m: Calls, x: Tensor, *hidden: Tensor) -> Any:
    """States whose batch, too, is dimension 0."""
    return given(m, x, *(state.transpose(0, 1).contiguous() for state in hidden))


def written(m: Calls, x: Tensor) -> Tensor:
    """In memory that is shared: export runs its own functionalization, a second trace."""
    y: Tensor = m.layer(x)[0]
    y[:, 1:].relu_()
    return y + 1


def flattened(m: Calls, x: Tensor) -> Tensor:
    return m.layer(x)[0].contiguous().view(x.shape[0], -1)


def literal(m: Calls, x: Tensor) -> Tensor:
    return x + m.layer(torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]))[0].sum()


def cases(kind: str) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    x = torch.rand(BATCH, STEPS, 4)
    by_time = torch.rand(STEPS, BATCH, 4)
    deep = {"num_layers": 2, "bidirectional": True}
    yield "batch first", layer(kind), (x,)
    yield "steps first", layer(kind, batch_first=False), (by_time,)
    yield "no batch", layer(kind), (x[0],)
    yield "two layers, both ways", layer(kind, **deep, dropout=0.5), (x,)
    yield "no bias", layer(kind, bias=False), (x,)
    yield "float64", layer(kind).double(), (x.double(),)
    yield "bfloat16", layer(kind).bfloat16(), (x.bfloat16(),)
    yield "one step", layer(kind), (x[:, :1],)
    yield "one sample", layer(kind), (x[:1],)
    yield "given states", Calls(layer(kind), given), (x, *states(kind, 1))
    deep_one = layer(kind, **deep, batch_first=False)
    yield "given states, deep", Calls(deep_one, given), (by_time, *states(kind, 4))
    open_states = tuple(state.transpose(0, 1) for state in states(kind, 1))
    yield "states by batch", Calls(layer(kind), turned), (x, *open_states)
    yield "flattened", Calls(layer(kind, bidirectional=True), flattened), (x,)
    yield "folded batch", Calls(layer(kind), lambda m, x: m.layer(x.flatten(0, 1))), (x[None],)
    yield "written in place", Calls(layer(kind), written), (x,)
    yield "a constant", Calls(layer(kind), lambda m, x: x + m.layer(m.kept)[0].sum()), (x,)
    yield "a literal", Calls(layer(kind), literal), (x,)
    if kind == "LSTM":
        yield "projections", layer(kind, **deep, proj_size=3), (x,)
        yield "projected states", Calls(layer(kind, proj_size=3), given), (x, *states(kind, 1, 3))
    if kind == "RNN":
        yield "relu", layer(kind, nonlinearity="relu"), (x,)


def plain(graph: Graph) -> tuple[Any, ...]:
    """The graph without its constants' values, which no ``==`` compares."""
    constants = {name: (t.shape, t.dtype) for name, t in graph.constants.items()}
    return graph.inputs, graph.nodes, graph.arguments, graph.outputs, graph.guards, constants


KINDS = ("LSTM", "GRU", "RNN")
# One rule gives the results' sizes, for a tuple of states (the LSTM's) and for one state: the two
# kinds that have one share the cases.
EVERY = {"LSTM": slice(None), "GRU": slice(0, None, 2), "RNN": slice(1, None, 2)}
NAMES = [(kind, name) for kind in KINDS for name, _, _ in list(cases(kind))[EVERY[kind]]]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_graphs_are_as_torch_would_make_them(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fixed number of steps, the only kind that torch makes."""
    (model, args) = next((model, args) for known, model, args in cases(kind) if known == name)
    monkeypatch.setattr(sizes_open, "_is_first", lambda tensor, axis: tensor.shape[axis] == BATCH)
    found = capture(model.eval(), args, open_sizes={})
    monkeypatch.setattr(torch_export, "WholeRecurrentLayers", nullcontext)
    assert plain(found) == plain(capture(model, args, open_sizes={}))


def dispatched(model: nn.Module, steps: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many operators are called on tensors without values while a model is captured."""
    count = 0
    dispatch = FakeTensorMode.dispatch

    def counting(self: FakeTensorMode, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return dispatch(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FakeTensorMode, "dispatch", counting)
        capture(model.eval(), torch.rand(BATCH, steps, 4))
    return count


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("kind", "function"),
    [*((kind, lambda m, x: m.layer(x)[0]) for kind in KINDS), ("LSTM", written)],
)
def test_work_does_not_grow_with_steps(
    kind: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Calls(layer(kind, bidirectional=True), function)
    dispatched(model, 4, monkeypatch)  # what torch remembers from then on
    assert dispatched(model, 5, monkeypatch) == dispatched(model, 50, monkeypatch) > 0
    monkeypatch.setattr(torch_export, "WholeRecurrentLayers", nullcontext)
    assert dispatched(model, 4, monkeypatch) < dispatched(model, 6, monkeypatch)


def test_states_that_do_not_fit_are_refused() -> None:
    def other(m: Calls, x: Tensor) -> Any:
        weights = m.layer._flat_weights
        return torch.gru(x, torch.zeros(1, 7, 5), weights, True, 1, 0.0, False, False, True)

    with pytest.raises(CaptureError, match="states that do not fit"):
        capture(Calls(layer("GRU"), other), torch.rand(BATCH, STEPS, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_values_is_computed(kind: str) -> None:
    model = layer(kind).eval()
    packed = pack_sequence([torch.rand(3, 4), torch.rand(2, 4)])
    x = torch.rand(BATCH, STEPS, 4)
    with torch.no_grad():
        expected = model(x)[0], model(packed)[0].data
        with WholeRecurrentLayers():
            found = model(x)[0], model(packed)[0].data
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_autocast_is_left_to_torch() -> None:
    model, x = layer("RNN").eval(), torch.rand(BATCH, STEPS, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), WholeRecurrentLayers():
        assert model(x)[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_torchs_own_export_is_as_it_was() -> None:
    model, x = layer("LSTM").eval(), torch.rand(BATCH, STEPS, 4)
    capture(model, x)
    program = torch.export.export(model, (x,), strict=False)
    assert torch.ops.aten.lstm.input in [node.target for node in program.graph.nodes]
