"""Layers in groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.graph.graph import Graph
from octavo.runtimes.tuning.layers import all_layers, kinds_of_layers, like_layers


def test_the_kinds_of_a_network_of_images(graph: Graph) -> None:
    kinds = {group.name: group for group in kinds_of_layers(graph)}
    assert {name: set(group.layers) for name, group in kinds.items()} == {
        "convolutions (stem)": {"stem"},
        "depthwise convolutions (depthwise)": {"depthwise"},
        "linear layers (left and 1 more)": {"left", "right"},
        "sums and pools (add and 1 more)": {"add", "mean"},
    }
    # 2 images of 8 x 8 places, 8 channels, 3 x 3 x 3 weights for each.
    assert kinds["convolutions (stem)"].work == 2 * 64 * 8 * 27
    assert next(iter(kinds)) == "convolutions (stem)"
    assert kinds["sums and pools (add and 1 more)"].narrow == frozenset()
    assert all_layers(graph).layers == frozenset().union(*(g.layers for g in kinds.values()))
    assert all_layers(graph).narrow == {"stem", "depthwise", "left", "right"}


def test_layers_of_one_size_are_alike() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    q = octavo.quantize(net, calibration=[torch.randn(2, 8)], progress=False)
    groups = [(group.name, set(group.layers)) for group in like_layers(q.graph)]
    assert groups == [("linear 8x8 (0 and 1 more)", {"0", "2"}), ("linear 4x8 (4)", {"4"})]


@pytest.mark.parametrize(("mode", "narrow"), [("dynamic", {"1"}), ("weight_only", set())])
def test_tables_and_layers_of_floats_stay_wide(mode: str, narrow: set[str]) -> None:
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 4))
    q = octavo.quantize(net, torch.tensor([[1, 2]]), mode=mode, progress=False)
    assert all_layers(q.graph).narrow == narrow
    names = {group.name.split(" (")[0] for group in kinds_of_layers(q.graph)}
    assert names == {"tables", "linear layers"}


def test_recurrent_layers_and_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.lstm(x)
            result: torch.Tensor = self.attention(y, y, y, need_weights=False)[0]
            return result

    mapping = octavo.QConfigMapping().set_object_type(
        "scaled_dot_product_attention", octavo.static_qconfig()
    )
    x = torch.randn(2, 5, 8)
    q = octavo.quantize(Net(), calibration=[x], qconfig=mapping, progress=False)
    names = {group.name.split(" (")[0] for group in kinds_of_layers(q.graph)}
    assert {"recurrent layers", "linear layers", "attention products"} <= names
