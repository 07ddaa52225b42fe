"""Sizes that a model computes with: some have to be numbers, some export only takes for such."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from running import run_graph
from torch import Tensor, nn

import octavo
from octavo.errors import CaptureError, InputError
from octavo.graph.capture.torch_export import export
from octavo.graph.program import run_of


def test_a_computed_size_of_one_is_no_constant() -> None:
    """The last map of a pyramid is 1 x 1 on the example, and larger on other images."""
    net = nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(5)]).eval()
    graph = octavo.capture(net, torch.rand(2, 3, 32, 32))
    assert graph.inputs[0].meta.shape == (None, 3, None, None)
    assert graph.inputs[0].sizes == (2, 3, 32, 32)  # what a file of fixed sizes gets
    run = run_of(graph, torch.device("cpu"))
    for size in ((32, 32), (32, 64), (40, 70)):
        x = torch.rand(3, 3, *size)
        with torch.no_grad():
            assert torch.allclose(run(x)[0], net(x), atol=1e-6)


def test_images_that_are_flattened_for_a_linear_layer_have_one_size() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)).eval()
    graph = octavo.capture(net, torch.rand(2, 3, 8, 8))
    assert graph.inputs[0].meta.shape == (None, 3, 8, 8)
    q = octavo.quantize(net, torch.rand(2, 3, 8, 8), mode="weight_only", progress=False)
    with pytest.raises(octavo.OctavoError, match=r"shape\[3\] == 8 is fixed: forward"):
        q(torch.rand(1, 3, 8, 9))


def test_sizes_that_are_stated_are_open_or_an_error_all_the_same() -> None:
    sides = {"input": {2: "height", 3: "width"}}
    pyramid = nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(5)]).eval()
    graph = octavo.capture(pyramid, torch.rand(2, 3, 32, 32), open_sizes=sides)
    assert str(graph.inputs[0]) == "float32[N, 3, height, width]"
    x = torch.rand(1, 3, 40, 70)
    torch.testing.assert_close(run_graph(graph, x), pyramid(x))
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4)).eval()
    with pytest.raises(InputError, match=r"'height' .* cannot be open: .*\[2\] == 8 is fixed"):
        octavo.capture(flat, torch.rand(2, 3, 8, 8), open_sizes=sides)


def test_what_reads_only_so_many_is_refused_more() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x[:, :1500]
            return first.sum(1) / first.shape[1]

    graph = octavo.capture(Net(), torch.rand(2, 6, 4))
    x = torch.rand(3, 1200, 4)
    torch.testing.assert_close(run_graph(graph, x), Net()(x))
    with pytest.raises(octavo.OctavoError, match=r"captured for x\.shape\[1\] < 1500: forward"):
        run_graph(graph, torch.rand(2, 1600, 4))


def test_what_was_several_may_be_one() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool1d(x, 16).mT.reshape(-1, 3)

    graph = octavo.capture(Net(), torch.rand(2, 3, 64))
    for count, length in ((2, 31), (3, 16), (1, 64)):
        x = torch.rand(count, 3, length)
        torch.testing.assert_close(run_graph(graph, x), Net()(x))


class OnAValue(nn.Module):
    """Branches on what its input holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class OnAWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.limit = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.limit.exp() > 1 else x


class OnASize(nn.Module):
    """Puts a size into a tensor, and branches on that: a number, where the size is fixed."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if torch.tensor(x.shape[1]) > 3 else x


class OfBoth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * float(x.max())
        return y * 2 if torch.tensor(x.shape[1]) > 3 else y


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.sum()
        return x * 2


@pytest.mark.parametrize(
    ("model", "exports"),
    [(OnAValue(), 1), (OnAWeight(), 1), (Stateful(), 1), (OnASize(), 2), (OfBoth(), 2)],
    ids=lambda value: type(value).__name__,
)
def test_a_second_export_is_made_only_where_it_can_help(
    model: nn.Module, exports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return export(*args, **options)

    monkeypatch.setattr("octavo.graph.capture.capture.export", counted)
    with suppress(CaptureError):
        octavo.capture(model, torch.rand(2, 5))
    assert len(calls) == exports


def test_a_size_in_a_tensor_is_captured_as_it_is() -> None:
    graph = octavo.capture(OnASize(), torch.rand(2, 5))
    assert graph.inputs[0].meta.shape == (None, 5)
    x = torch.rand(3, 5)
    torch.testing.assert_close(run_graph(graph, x), 2 * x)
