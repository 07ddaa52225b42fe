"""Models that take one sample without a batch: the same values, and every mode."""

from __future__ import annotations

import pytest
import torch
from running import run_graph
from torch import nn

import octavo

MODELS = {
    "1d": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Sigmoid(), nn.AvgPool1d(2)), (3, 11)),
    "2d": (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)),
        (3, 10, 12),
    ),
    "3d": (nn.Sequential(nn.Conv3d(2, 4, 2), nn.AdaptiveAvgPool3d(2)), (2, 5, 6, 7)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 5, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_the_model(name):
    model, shape = MODELS[name]
    x = torch.randn(shape)
    graph = octavo.capture(model.eval(), x)
    layers = [n for n in graph.nodes if "conv" in n.short_op or "pool" in n.short_op]
    assert layers
    assert all(len(layer.meta.shape) == len(shape) + 1 for layer in layers)
    with torch.no_grad():
        assert torch.allclose(run_graph(graph, x), model(x), atol=1e-6)


def test_layers_that_follow_each_other_share_a_batch():
    model, shape = MODELS["2d"]
    graph = octavo.capture(model.eval(), torch.randn(shape))
    assert [n.short_op for n in graph.nodes] == [
        *("unsqueeze", "conv2d", "max_pool2d", "conv2d", "squeeze")
    ]


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("name", MODELS)
def test_each_mode_takes_them(name, mode):
    torch.manual_seed(0)
    model, shape = MODELS[name]
    batches = [torch.rand(shape) for _ in range(3)]
    asked = octavo.weight_only_qconfig() if mode == "weight_only" else octavo.dynamic_qconfig()
    rules = octavo.QConfigMapping()
    for kind in ("conv1d", "conv2d", "conv3d", "conv_transpose2d"):
        rules.set_object_type(kind, asked)
    q = octavo.quantize(
        model.eval(),
        batches[0],
        calibration=batches,
        mode=mode,
        qconfig=None if mode == "static" else rules,
        scope="model",
        progress=False,
    )
    with torch.no_grad():
        exact = model(batches[0])
    assert q(batches[0]).shape == exact.shape
    assert float((q(batches[0]) - exact).norm() / exact.norm()) < 0.02
