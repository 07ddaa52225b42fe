"""Moves of bytes in front of layers: the same numbers, and a network of windows as one program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from decibel import sqnr_db
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

import octavo
from octavo.graph.program import run_of
from octavo.graph.qdq import QUANTIZE
from octavo.numerics.native import library
from octavo.runtimes.native.program import Program
from octavo.runtimes.torch import int8
from octavo.runtimes.torch.early_moves import with_early_moves

pytestmark = pytest.mark.skipif(bool(library.obstacle()), reason="no kernels here: make native")
TARGET = octavo.host_target()


class Net(nn.Module):
    """A layer between moves, beside a shortcut."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]):
        super().__init__()
        self.before, self.after = before, after
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(self.before(self.norm(x))))
        return self.norm(x + self.after(self.two(y)))


def quantized(net: nn.Module, x: Tensor) -> octavo.QuantizedModel:
    return octavo.quantize(net.eval(), x, calibration=[x], target=TARGET)


def windows(x: Tensor) -> Tensor:
    x = x.roll((-1, -1), (1, 2)).view(-1, 2, 2, 2, 2, 8)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)


def joined(x: Tensor) -> Tensor:
    x = x.view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, 4, 4, 8).roll((1, 1), (1, 2))


MOVES = {
    "windows": (windows, joined),
    "rows turned": (lambda x: x.transpose(1, 2), lambda x: x.transpose(1, 2)),
    "rows turned by other axes": (
        lambda x: x.permute(1, 2, 0, 3),
        lambda x: x.permute(2, 0, 1, 3),
    ),
}


@pytest.mark.parametrize(("before", "after"), MOVES.values(), ids=MOVES)
def test_moves_and_roundings_change_places(before, after):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 4, 8)
    graph = quantized(Net(before, after), x).graph
    early = with_early_moves(graph)
    (want,), (have,) = run_of(graph)(x), run_of(early)(x)
    assert sqnr_db(want, have) > 100
    # The norm's result is rounded, and nothing stands between the last layer and the sum.
    (norm, _) = (node for node in early.nodes if node.short_op == "layer_norm")
    assert [node.op for node in early.users[norm.name]] == [QUANTIZE]
    layers = [node for node in early.nodes if node.short_op == "linear"]
    assert [node.short_op for node in early.users[layers[1].name]] == ["add"]


def with_channels_moved(x: Tensor) -> Tensor:
    return x.transpose(2, 3).roll(1, -1).transpose(2, 3)


STAY = {
    "channels are moved": with_channels_moved,
    "channels are rolled": lambda x: x.roll(2, -1),
    "channels are parted": lambda x: x.reshape(-1, 4, 4, 4, 2).transpose(1, 2).flatten(3),
    "read twice": lambda x: x.transpose(1, 2) + x,
    "only looks": lambda x: x.reshape(-1, 16, 8).reshape(-1, 4, 4, 8),
}


@pytest.mark.parametrize("after", STAY.values(), ids=STAY)
def test_other_moves_stay_behind_a_layer(after):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 4, 8)
    graph = quantized(Net(lambda x: x, after), x).graph
    early = with_early_moves(graph)
    assert [n.name for n in early.nodes] == [n.name for n in graph.nodes]


def test_a_network_of_windows_is_one_program(monkeypatch):
    """Swin, whose attention is written out; its windows are shifted in every other block."""
    torch.manual_seed(0)
    net = SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=10).eval()
    data = torch.randn(4, 3, 32, 32)
    seen = []
    plain = int8.with_programs

    def watched(*args):
        seen.append(plain(*args))
        return seen[-1]

    monkeypatch.setattr(int8, "with_programs", watched)
    q = octavo.quantize(net, data, calibration=[data], target=TARGET).lower("torch")
    have, oracle = q(data), q.lower("reference")(data)
    operators = [node.short_op for node in q.graph.nodes]
    assert operators.count("attention") == 2
    assert "softmax" not in operators
    programs = [step for step in seen[0] if isinstance(step.function, Program)]
    assert len(programs) == 1
    assert not [step for step in seen[0] if isinstance(step.function, torch._ops.OpOverload)][1:]
    assert sqnr_db(oracle, have) > 45
    assert sqnr_db(net(data), have) > 28
