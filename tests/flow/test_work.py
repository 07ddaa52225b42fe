"""Multiply-adds of what stays Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.flow.work import work_of
from octavo.graph.capture.capture import capture
from octavo.graph.multiply_adds import multiply_adds


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ji->bj", x, self.weight) @ torch.ones(5)


class WithoutGrad(nn.Linear):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


LAYERS = {
    "linear": (nn.Linear(4, 6), (3, 4)),
    "in inference mode": (WithoutGrad(4, 6), (3, 4)),
    "convolution": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (2, 4, 8, 8)),
    "attention": (Attention(), (2, 4, 16, 8)),
    "lstm": (nn.LSTM(4, 6, 2, bidirectional=True), (5, 3, 4)),
    "gru": (nn.GRU(4, 6), (5, 3, 4)),
    "products": (Products(), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_python_counts_as_a_graph_does(name: str) -> None:
    model, shape = LAYERS[name]
    x = torch.randn(shape)
    model = model.eval()
    counted = work_of(model, [lambda model: model(x), lambda model: model(x)])[model]
    plain = nn.Linear(4, 6) if isinstance(model, WithoutGrad) else model
    once = sum(multiply_adds(capture(plain, x)).values())
    assert once > 0
    assert (counted.whole, counted.first, counted.calls(2)) == (2 * once, once, 1)


class Careful(nn.Module):
    """Goes on behind a module that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.fails, self.last = nn.Linear(3, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        try:
            self.fails(x)
        except RuntimeError:
            x = x @ torch.ones(4, 4)
        return self.last(x)


def test_a_module_that_fails_is_left_behind() -> None:
    model = Careful()
    works = work_of(model, [lambda model: model(torch.ones(1, 4))])
    assert works[model].own == 16
    assert works[model].whole == 16 + 8
    assert works[model.last].own == 8
    assert not model._forward_hooks
    assert not model.fails._forward_pre_hooks


class Loop(nn.Module):
    """Calls a region with eight rows, and then with one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(x)
        while y.sum() > -1 and len(y) > 4:
            y = y[:-1] + self.step(y[-1:])
        return y @ torch.ones(4, 2)


def test_calls_of_other_sizes_count_as_what_they_are() -> None:
    q = octavo.quantize(Loop().eval(), torch.randn(8, 4), mode="dynamic", scope="regions")
    assert q.step.place.calls == 1.5
    expected = {"dynamic": 12 * 16, "float": 4 * 8}
    assert octavo.summary(q).coverage.multiply_adds == expected


def test_a_file_keeps_the_counts(tmp_path) -> None:
    model = Loop().eval()
    q = octavo.quantize(model, torch.randn(8, 4), mode="dynamic", scope="regions")
    octavo.save(q, tmp_path / "q.octavo")
    loaded = octavo.load(tmp_path / "q.octavo", into=model)
    assert octavo.summary(loaded).to_dict() == octavo.summary(q).to_dict()
    assert octavo.summary(loaded).share == pytest.approx(12 * 16 / (12 * 16 + 32))
