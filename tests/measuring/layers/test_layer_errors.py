"""What rounding does to each tensor, against the same computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from residual import ResidualNet
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.errors import InputError
from octavo.graph.graph import Ref
from octavo.measuring.layers.error_sums import ErrorSums, RangeSums
from octavo.numerics.affine import fake_quantize
from octavo.runtimes import lower


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return ResidualNet().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(3, 4, 3, 8, 8))


def _sqnr(exact: Tensor, rounded: Tensor) -> float:
    return float(20 * torch.log10(exact.norm() / (exact - rounded).norm()))


def test_own_and_accumulated_errors_are_those_computed_by_hand(
    net: ResidualNet, batches: list[Tensor]
) -> None:
    q = octavo.quantize(net, calibration=batches, target="x86", bias_correction=False)
    found = {row.tensor: row for row in octavo.layer_errors(net, q, batches).rows}
    x = torch.cat(batches)
    graph = octavo.capture(net, x)
    plan = octavo.plan(graph, target="x86")
    qparams = octavo.calibrate(graph, plan, batches).qparams

    def rounded(value: Tensor, name: str) -> Tensor:
        return fake_quantize(value, qparams[name])

    with torch.no_grad():
        first = functional.relu(net.conv(x))
        weight = rounded(net.conv.weight, "conv.weight")
        own = functional.relu(functional.conv2d(rounded(x, "x"), weight, net.conv.bias, padding=1))
        own = rounded(own, "relu")
        logits, q_logits = net(x), q.lower("reference")(x)
        second = functional.relu(first + net.conv2(first)).mean((2, 3))
        fc = functional.linear(
            rounded(second, "mean"), rounded(net.fc.weight, "fc.weight"), net.fc.bias
        )
    assert found["conv.weight"].sqnr_db == pytest.approx(_sqnr(net.conv.weight, weight), abs=1e-3)
    assert found["conv.weight"].accumulated_sqnr_db is None
    # Biases are whole steps there, and are not here.
    assert found["relu"].sqnr_db == pytest.approx(_sqnr(first, own), abs=0.01)
    assert found["relu"].accumulated_sqnr_db == pytest.approx(found["relu"].sqnr_db, abs=1e-3)
    assert found["relu"].mse == pytest.approx(float((first - own).square().mean()), rel=1e-3)
    assert found["relu"].high == pytest.approx(float(first.max()))
    assert found["fc"].sqnr_db == pytest.approx(_sqnr(logits, fc), abs=0.01)
    assert found["fc"].accumulated_sqnr_db == pytest.approx(_sqnr(logits, q_logits), abs=0.01)
    assert found["fc"].accumulated_sqnr_db < found["fc"].sqnr_db
    cosine = functional.cosine_similarity(first.flatten(), own.flatten(), 0)
    assert found["relu"].cosine == pytest.approx(float(cosine), abs=1e-6)


def test_clipped_and_unused_shares(net: nn.Module) -> None:
    x = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)
    tight = octavo.static_qconfig("x86", observer=octavo.FixedRange(-0.5, 0.5))
    loose = octavo.static_qconfig("x86", observer=octavo.FixedRange(-4.0, 4.0))
    for config, clipped, unused in ((tight, 0.5, 0.0), (loose, 0.0, 0.75)):
        q = octavo.quantize(net, x, calibration=[x], qconfig=config, target="x86")
        row = octavo.layer_errors(net, q, [x]).rows[0]
        assert (row.tensor, row.kind, row.low, row.high) == ("x", "input", -1.0, 1.0)
        assert row.clipped == pytest.approx(clipped, abs=0.01)
        assert row.unused == pytest.approx(unused, abs=0.01)


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_other_modes(net: nn.Module, batches: list[Tensor], mode: str) -> None:
    q = octavo.quantize(net, batches[0], mode=mode, target="x86")
    found = {row.tensor: row for row in octavo.layer_errors(net, q, batches).rows}
    assert found["fc.weight"].sqnr_db > 35
    assert 30 < found["fc"].sqnr_db < math.inf
    assert found["fc"].values == "float"


def test_uint8_images(net: nn.Module) -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    q = octavo.quantize(net, calibration=[images], input_mean=0.5, target="x86")
    found = octavo.layer_errors(net, q, [images])
    assert min(row.sqnr_db for row in found.rows) > 25


def test_the_worst_come_first_and_all_is_data(net: nn.Module, batches: list[Tensor]) -> None:
    pandas = pytest.importorskip("pandas")
    q = octavo.quantize(net, calibration=batches, target="x86")
    found = octavo.layer_errors(net, q, batches)
    worst = [row.sqnr_db for row in found.worst(3)]
    assert worst == sorted(worst)
    assert worst[0] == min(row.sqnr_db for row in found.rows if row.kind == "activation")
    data = json.loads(found.to_json())
    assert data["samples"] == 12
    assert [row["tensor"] for row in data["rows"]] == [row.tensor for row in found.rows]
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc["fc", "sqnr_db"] == found.rows[-1].sqnr_db
    assert "conv2.weight" in str(found)


def test_batches_stream(net: nn.Module, batches: list[Tensor]) -> None:
    q = octavo.quantize(net, calibration=batches, target="x86")

    def stream() -> Iterator[Tensor]:
        yield from batches

    assert octavo.layer_errors(net, q, stream()) == octavo.layer_errors(net, q, batches)


def test_what_does_not_belong_together(net: nn.Module, batches: list[Tensor]) -> None:
    q = octavo.quantize(net, calibration=batches, target="x86")
    with pytest.raises(InputError, match="no data"):
        octavo.layer_errors(net, q, [])
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 5))
    with pytest.raises(InputError, match=r"has no layer .* made from another model"):
        octavo.layer_errors(other, q, batches)


def test_the_sums() -> None:
    sums = ErrorSums()
    assert sums.sqnr_db == math.inf
    for part in (slice(0, 1), slice(1, 3)):
        sums.update(torch.tensor([3.0, 0.0, 4.0])[part], torch.tensor([3.0, 0.5, 4.0])[part])
    assert sums.mse == pytest.approx(0.25 / 3)
    assert sums.sqnr_db == pytest.approx(20.0)
    assert sums.cosine == pytest.approx(5 / math.sqrt(25.25))
    nothing = ErrorSums()
    nothing.update(torch.zeros(2), torch.ones(2))
    assert (nothing.sqnr_db, nothing.cosine) == (-math.inf, 0.0)
    seen = RangeSums()
    seen.update(torch.tensor([-2.0, 0.0, 1.0, 5.0]), (-1.0, 2.0))
    assert (seen.low, seen.high, seen.clipped_share) == (-2.0, 5.0, 0.5)


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_a_layer_whose_result_stays_float_is_measured_too(mode: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 5)).eval()
    x = torch.randn(32, 16)
    q = octavo.quantize(
        net, x, calibration=[x] if mode == "static" else None, mode=mode, target="x86"
    )
    found = {row.tensor: row for row in octavo.layer_errors(net, q, [x]).rows}
    assert (found["0"].values, found["0"].op) == ("float", "linear")
    graph = replace(
        q.graph, outputs=[Ref("0")]
    ).pruned()  # behind the input there is no other layer
    (rounded,) = lower(graph, "reference", torch.device("cpu")).run(x)
    assert found["0"].sqnr_db == pytest.approx(_sqnr(net[0](x), rounded), abs=0.01)
    assert found["0"].accumulated_sqnr_db == pytest.approx(found["0"].sqnr_db, abs=0.01)
    assert found["2"].accumulated_sqnr_db < found["2"].sqnr_db + 0.5


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.head(features.relu()), features


@pytest.mark.parametrize("target", ["x86", "edge"])
def test_a_rounded_layer_that_the_model_returns_too_is_one_row(target: str) -> None:
    net, x = Features().eval(), torch.randn(16, 8)
    q = octavo.quantize(net, calibration=[x], target=target, progress=False)
    found = octavo.layer_errors(net, q, [x], progress=False)
    layers = [row for row in found.rows if row.kind == "activation"]
    assert [row.tensor for row in layers] == ["body", "relu", "head"]
    assert all(row.sqnr_db > 30 for row in layers)
