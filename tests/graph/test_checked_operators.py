"""Kernels that trust their arguments are never run on what would harm them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.graph import operators
from octavo.graph.checked_operators import GUARDS, Guarded

TABLE, INDICES = torch.randn(5, 3), torch.tensor([0, 4, 2, 2])
V, C = torch.randn(4, 3), torch.randn(3)
X = torch.randn(2, 3, 5)


def run(name: str, *args: Any) -> Any:
    return operators.resolve(name)(*args)


def lstm(layer: nn.LSTM, x: Tensor, state: Tensor) -> tuple[Any, ...]:
    both = layer.bidirectional
    weights = [weight.detach() for weight in layer.parameters()]
    return x, [state, state], weights, True, layer.num_layers, 0.0, False, both, False


def test_what_is_right_runs_as_ever() -> None:
    aten = torch.ops.aten
    g = torch.rand(4, 1)
    assert torch.equal(run("aten._weight_norm.default", V, g), aten._weight_norm(V, g))
    whole = (V, torch.tensor(2.0), -1)  # one norm of all, as weight_norm(layer, dim=None) has it
    assert torch.equal(run("aten._weight_norm.default", *whole), aten._weight_norm(*whole))
    bags = (TABLE, INDICES, torch.tensor([0, 2]))
    assert torch.equal(run("aten.embedding_bag.default", *bags)[0], aten.embedding_bag(*bags)[0])
    none = torch.zeros(0, dtype=torch.int64)
    assert run("aten.embedding_bag.default", TABLE, none, none)[0].shape == (0, 3)
    layer, x = nn.LSTM(3, 4, num_layers=2, bidirectional=True), torch.randn(6, 2, 3)
    found = run("aten.lstm.input", *lstm(layer, x, torch.zeros(4, 2, 4)))[0]
    assert torch.equal(found, layer(x)[0])
    args = (X, None, None, torch.zeros(3), torch.ones(3), 0.1, 0.0)
    found = run("aten._native_batch_norm_legit_no_training.default", *args)[0]
    torch.testing.assert_close(found, X)
    found = run("aten.native_group_norm.default", X, C, None, 2, 3, 5, 1, 1e-5)[0]
    torch.testing.assert_close(found, nn.functional.group_norm(X, 1, C))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        # The kernel would write 4 norms into memory for one, or divide by zero.
        ("aten._weight_norm.default", (V, torch.ones(1))),
        ("aten._weight_norm.default", (V, torch.ones(4, 1), 1)),
        ("aten._weight_norm.default", (V[:0], torch.ones(0, 1))),
        ("aten.embedding_bag.default", (TABLE, INDICES, torch.tensor([0, 9]))),
        ("aten.embedding_bag.default", (TABLE, INDICES, torch.tensor([0, -1]))),
        ("aten.embedding_bag.default", (TABLE, INDICES + 4, torch.tensor([0, 2]))),
        ("aten.embedding_bag.default", (TABLE, INDICES, torch.zeros(0, dtype=torch.int64))),
        (
            "aten.embedding_bag.padding_idx",
            (TABLE, INDICES, torch.tensor([0]), False, 2, False, None, True, 1),
        ),
        (
            "aten._native_batch_norm_legit_no_training.default",
            (X, None, None, torch.zeros(2), torch.ones(3), 0.1, 0.0),
        ),
        ("aten.native_group_norm.default", (X, None, None, 2, 3, 50, 1, 1e-5)),
        ("aten.native_group_norm.default", (X, None, None, 2, 3, 5, 2, 1e-5)),
        ("aten.native_group_norm.default", (X, torch.ones(1), None, 2, 3, 5, 1, 1e-5)),
    ],
)
def test_what_would_do_harm_does_not_run(name: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"value|norm|offsets|indices|bag"):
        run(name, *args)


@pytest.mark.parametrize("place", range(8))
def test_every_weight_of_a_recurrent_layer_is_looked_at(place: int) -> None:
    layer = nn.LSTM(3, 4, num_layers=2)
    args = lstm(layer, torch.randn(6, 2, 3), torch.zeros(2, 2, 4))
    for wrong in (args[2][place][:1], args[2][place].double(), args[2][place][None]):
        weights = [*args[2][:place], wrong, *args[2][place + 1 :]]
        with pytest.raises(ValueError, match="weights"):
            run("aten.lstm.input", *args[:2], weights, *args[3:])


def test_every_guard_is_of_an_operator() -> None:
    for name in GUARDS:
        found = operators.resolve(name)
        assert isinstance(found, Guarded)
        assert found._schema.name == f"aten::{name.split('.')[1]}"
