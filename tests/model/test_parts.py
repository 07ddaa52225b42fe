"""Models with quantized parts: the parts, their summary, other runtimes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.model.parts import parts_of, regions_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU())
        self.twice = nn.Linear(8, 8)
        self.rest = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        y = self.twice(torch.tanh(self.twice(y)))
        return y @ self.rest if y.sum() < 1e9 else y


@pytest.fixture
def q() -> nn.Module:
    torch.manual_seed(0)
    data = [torch.randn(4, 3, 6, 6) for _ in range(2)]
    return octavo.quantize(
        Net().eval(), calibration=data, scope="regions", target=octavo.host_target()
    )


def test_multiply_adds_of_regions(q: nn.Module) -> None:
    summary = octavo.summary(q)
    convolution, linear = 4 * 8 * 4 * 4 * 3 * 9, 2 * 4 * 8 * 8  # called twice
    in_python = 4 * 8 * 8
    assert summary.coverage.multiply_adds == {"int8": convolution + linear, "float": in_python}
    share = (convolution + linear) / (convolution + linear + in_python)
    assert summary.share == pytest.approx(share)
    assert summary.headline == "98 % of the multiply-adds in int8"
    assert summary.to_dict()["in_python"] == {"Net": "Net"}
    assert "2 % in float: Net: it is in no region, and runs in Python" in str(summary)
    assert "conv (Sequential)" in str(summary)
    assert summary.float_mb > summary.size_mb


def test_a_module_says_its_bytes() -> None:
    summary = octavo.summary(octavo.quantize(Net(), scope="modules"))
    assert summary.parts["twice"].runs == "dynamic int8"
    assert summary.coverage.integer_bytes == 64
    assert summary.headline == "0.00 MB of integers for weights"


def test_attention_counts_the_bytes_of_its_projections() -> None:
    net = nn.Sequential(nn.MultiheadAttention(64, 2))
    covered = octavo.summary(octavo.quantize(net, scope="modules")).coverage
    weights, biases = 4 * 64 * 64, 4 * 64
    assert covered.integer_bytes == weights
    assert covered.float_bytes == 4 * (weights + biases)


def test_the_same_functions_take_a_model_that_is_one_graph() -> None:
    one = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4))
    assert octavo.summary(one).to_dict() == one.summary().to_dict()
    assert octavo.lower(one, "reference").runtime == "reference"


def test_lower_gives_a_copy_on_another_runtime(q: nn.Module) -> None:
    oracle = octavo.lower(q, "reference")
    assert {region.runtime for region in regions_of(oracle).values()} == {"reference"}
    assert {region.runtime for region in regions_of(q).values()} == {"torch"}
    assert type(oracle) is Net
    x = torch.randn(3, 3, 6, 6)
    assert torch.allclose(oracle(x), q(x), atol=0.1)
    assert oracle.conv.place == q.conv.place


def test_a_quantized_model_that_was_put_in_by_hand_is_a_part() -> None:
    model = Net().eval()
    model.twice = octavo.quantize(model.twice, torch.randn(2, 8))
    assert list(parts_of(model)) == ["twice"]
    assert octavo.summary(model).parts["twice"].kind == "QuantizedModel"
