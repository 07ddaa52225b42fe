"""Multiply-adds of each node: known networks, and every operator that has products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision_shim  # noqa: F401
from calling import Call
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import octavo
from octavo.graph.multiply_adds import multiply_adds


def counted(module: nn.Module, *args: Any) -> dict[str, int]:
    return multiply_adds(octavo.capture(module.eval(), args))


def test_a_known_network_has_the_known_number() -> None:
    """Of one image of 224 by 224, as its paper has it; test_zoo has others, as torch counts."""
    models = pytest.importorskip("torchvision.models")
    counts = counted(models.resnet18(), torch.zeros(2, 3, 224, 224))
    assert sum(counts.values()) == 2 * 1_814_073_344


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


PRODUCTS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], int]] = {
    "matmul": (torch.matmul, (ones(2, 3, 4), ones(4, 5)), 2 * 3 * 4 * 5),
    "matmul of vectors": (torch.matmul, (ones(7), ones(7)), 7),
    "mv": (torch.mv, (ones(3, 4), ones(4)), 3 * 4),
    "bmm": (torch.bmm, (ones(2, 3, 4), ones(2, 4, 5)), 2 * 3 * 4 * 5),
    "addmm": (torch.addmm, (ones(5), ones(3, 4), ones(4, 5)), 3 * 4 * 5),
    "baddbmm": (torch.baddbmm, (ones(2, 3, 5), ones(2, 3, 4), ones(2, 4, 5)), 2 * 3 * 4 * 5),
    "tensordot": (
        lambda a, b: torch.tensordot(a, b, dims=([1, 2], [0, 1])),
        (ones(2, 3, 4), ones(3, 4, 5)),
        2 * 3 * 4 * 5,
    ),
    "einsum": (
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
        (ones(2, 3, 4), ones(2, 4, 5)),
        120,
    ),
    "einsum with an ellipsis": (
        lambda a, b: torch.einsum("...ij,jk->...ik", a, b),
        (ones(2, 6, 3, 4), ones(4, 5)),
        2 * 6 * 3 * 4 * 5,
    ),
    "einsum that only moves": (lambda a: torch.einsum("ij->ji", a), (ones(2, 3),), 0),
    "attention": (
        nn.functional.scaled_dot_product_attention,
        (ones(2, 4, 6, 8), ones(2, 4, 9, 8), ones(2, 4, 9, 5)),
        2 * 4 * 6 * 9 * (8 + 5),
    ),
    "a transform": (lambda a: torch.fft.fft(a).real, (ones(3, 16),), int(2.5 * 48 * 4)),
    "a transform of two axes": (lambda a: torch.fft.fft2(a).real, (ones(2, 8, 4),), 160 * 5),
    "a function": (lambda a: torch.softmax(a * a, -1), (ones(2, 3),), 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_activations(name: str) -> None:
    function, args, count = PRODUCTS[name]
    assert sum(counted(Call(function), *args).values()) == count


LAYERS: dict[str, tuple[nn.Module, tuple[Tensor, ...], int]] = {
    "linear": (nn.Linear(3, 5), (ones(2, 7, 3),), 2 * 7 * 3 * 5),
    "bilinear": (nn.Bilinear(3, 4, 5), (ones(2, 3), ones(2, 4)), 2 * 3 * 4 * 5),
    "embedding": (nn.Embedding(9, 4), (torch.zeros(2, 3, dtype=torch.int64),), 0),
    "conv1d": (nn.Conv1d(4, 6, 3), (ones(2, 4, 10),), 2 * 6 * 8 * 4 * 3),
    "grouped conv2d": (
        nn.Conv2d(4, 6, 3, groups=2, padding=1),
        (ones(2, 4, 5, 5),),
        2 * 6 * 25 * 2 * 9,
    ),
    "strided conv2d": (nn.Conv2d(1, 1, 2, stride=2), (ones(2, 1, 8, 8),), 2 * 16 * 4),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (ones(2, 4, 5, 5),), 2 * 4 * 25 * 6 * 4),
    "lstm": (nn.LSTM(3, 5), (ones(7, 2, 3),), 7 * 2 * 4 * 5 * (3 + 5)),
    "lstm of two layers, batch first": (
        nn.LSTM(3, 5, num_layers=2, batch_first=True),
        (ones(2, 7, 3),),
        7 * 2 * 4 * 5 * (3 + 5 + 5 + 5),
    ),
    "lstm with a projection": (
        nn.LSTM(3, 5, proj_size=2),
        (ones(7, 2, 3),),
        7 * 2 * (4 * 5 * (3 + 2) + 2 * 5),
    ),
    "bidirectional gru": (nn.GRU(3, 5, bidirectional=True), (ones(7, 2, 3),), 7 * 2 * 2 * 15 * 8),
    "rnn": (nn.RNN(3, 5), (ones(7, 2, 3),), 7 * 2 * 5 * 8),
    "lstm cell": (nn.LSTMCell(3, 5), (ones(2, 3),), 2 * 4 * 5 * (3 + 5)),
    "gru cell": (nn.GRUCell(3, 5), (ones(2, 3), ones(2, 5)), 2 * 3 * 5 * (3 + 5)),
    "norms and pools": (
        nn.Sequential(nn.AvgPool2d(2), nn.GroupNorm(2, 4), nn.ReLU()),
        (ones(2, 4, 8, 8),),
        0,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    layer, args, count = LAYERS[name]
    assert sum(counted(layer, *args).values()) == count


def test_they_are_those_that_torch_counts() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 7, 16)
    counts = counted(model, x)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        products = sdpa_kernel(SDPBackend.MATH)  # the counter knows no fused kernel of CPUs
        with FlopCounterMode(display=False) as counter, torch.no_grad(), products:
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert sum(counts.values()) == counter.get_total_flops() / 2
    assert counts["layers.0.linear1"] == 3 * 7 * 16 * 32


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_quantizing_changes_nothing(mode: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    graph = octavo.capture(model, torch.randn(2, 3, 8, 8))
    data = [torch.randn(2, 3, 8, 8)] if mode == "static" else None
    example = None if data else torch.randn(2, 3, 8, 8)
    q = octavo.quantize(model, example, calibration=data, mode=mode, target="x86-avx2")
    assert multiply_adds(q.graph) == multiply_adds(graph)
    assert multiply_adds(graph) == {"0": 2 * 8 * 36 * 27, "3": 2 * 5 * 288}
