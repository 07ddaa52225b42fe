"""Random inputs stay within what the data has shown."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import octavo
from octavo.graph.graph import Graph, Input, TensorMeta
from octavo.runtimes.examples import random_inputs, smaller_inputs


def _graph(dtype: str, seen: tuple[float, float] | None, shape=(None, 500)) -> Graph:
    return Graph((Input("x", TensorMeta(shape, dtype), (4, 500), seen),), {}, (), {}, ())


@pytest.mark.parametrize("seen", [(-1.0, 3.0), (0.0, 1.0), (5.0, 5.0)])
def test_floats_lie_in_the_range(seen):
    (x,) = random_inputs(_graph("float32", seen))
    assert x.shape == (4, 500)
    assert seen[0] <= x.min() <= x.max() <= seen[1]
    assert abs(x.mean() - sum(seen) / 2) < 0.1
    assert abs(x.std() - (seen[1] - seen[0]) / 6) < 0.05


def test_indices_lie_in_the_range_and_reach_its_ends():
    (x,) = random_inputs(_graph("int64", (3.0, 9.0)), batch=7)
    assert x.shape == (7, 500)
    assert x.unique().tolist() == list(range(3, 10))


@pytest.mark.parametrize(
    ("dtype", "seen"),
    [("int64", (0.0, 1.0)), ("bool", (0.0, 1.0)), ("float32", (-3.4e38, 0.0))],
)
def test_masks_hold_their_two_ends_and_let_most_through(dtype, seen):
    (x,) = random_inputs(_graph(dtype, seen))
    values = x.double()
    assert set(values.unique().tolist()) == {float(torch.tensor(seen[0]).to(x.dtype)), seen[1]}
    assert (values == seen[1]).double().mean() > 0.85
    assert (values[:, 0] == seen[1]).all()


def test_without_a_range():
    assert (random_inputs(_graph("int64", None))[0] == 1).all()
    assert random_inputs(_graph("uint8", None))[0].max() > 200
    assert 0.9 < random_inputs(_graph("float32", None))[0].std() < 1.1


def test_a_seed_is_a_batch():
    graph = _graph("float32", (0.0, 1.0))
    one, same, other = (random_inputs(graph, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_smaller_inputs_are_within_the_guards() -> None:
    class Halved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0)

    graph = octavo.capture(nn.Sequential(nn.Conv2d(3, 8, 1), Halved()), torch.randn(2, 3, 8, 12))
    smaller = smaller_inputs(graph)
    assert smaller is not None
    assert [list(tensor.shape) for tensor in smaller] == [[2, 3, 6, 10]]
    assert smaller_inputs(octavo.capture(nn.Linear(8, 4), torch.randn(2, 8))) is None
