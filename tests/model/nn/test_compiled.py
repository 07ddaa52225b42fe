"""Quantized layers inside of what ``torch.compile`` compiles."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import octavo


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """It counts how often it has compiled the same code."""
    torch.compiler.reset()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(20, 32), nn.Linear(32, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(self.table(ids))) + ids.unsqueeze(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_one_graph_for_all_sizes(mode: str, dtype: torch.dtype) -> None:
    q = octavo.quantize(Net().eval().to(dtype), mode=mode)
    compiled = torch.compile(q, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3), (5, 7), (1, 9)):
            ids = torch.randint(0, 20, shape)
            result = compiled(ids)
            assert result.dtype == dtype
            torch.testing.assert_close(result, q(ids))


def test_a_copy_is_a_layer_of_its_own() -> None:
    q = octavo.quantize(Net().eval(), mode="weight_only")
    other = copy.deepcopy(q)
    with torch.no_grad():
        other.layer.own_tensors()["bias"].add_(1.0)
        compiled = torch.compile(other, backend="eager", fullgraph=True)
        ids = torch.arange(6).reshape(2, 3)
        torch.testing.assert_close(compiled(ids), other(ids))
        assert not torch.allclose(compiled(ids), q(ids))


def test_results_have_no_gaps_between_rows() -> None:
    """The compiler was told so, and code around a layer views them."""
    q = octavo.quantize(nn.Sequential(nn.Linear(32, 20), nn.ReLU()).eval(), mode="dynamic")
    x = torch.rand(5, 32)
    assert q[0](x).is_contiguous()
    assert torch.ops.octavo.linear_layer(x, q[0].number, 20).is_contiguous()
    lstm = octavo.quantize(nn.LSTM(8, 6).eval(), mode="dynamic")
    assert lstm(torch.rand(5, 2, 8))[0].is_contiguous()
