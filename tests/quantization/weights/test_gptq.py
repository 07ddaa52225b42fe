"""`octavo.GPTQ`, and the moments of inputs that methods ask for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.numerics.affine import QParams, quantized
from octavo.quantization.weights.gptq import gptq
from octavo.quantization.weights.moments import MeanSquare, SecondMoments

CHANNELS = octavo.Scheme("int4", symmetric=True, channel_axis=0)


def qparams(rows: int, scale: float = 1.0) -> QParams:
    return QParams(torch.full((rows,), scale), torch.zeros(rows, dtype=torch.int32), CHANNELS)


def test_by_hand() -> None:
    """Two inputs that are always equal: what the first weight loses, the second takes back."""
    moments = torch.ones(2, 2)
    weight = torch.tensor([[1.4, 2.4], [0.3, 0.3]])
    # 1.4 -> 1, so that 2.4 shall be 2.8 -> 3: the sum is 3.8 and becomes 4; rounded to the
    # nearest it would be 3. 0.3 -> 0, so that the other is 0.6 -> 1.
    integers = gptq(weight, moments, qparams(2), 1e-6)
    assert integers.tolist() == [[1.0, 3.0], [0.0, 1.0]]


def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest() -> None:
    weight = torch.randn(5, 40) * 3
    moments = torch.diag(torch.rand(40) * 100)
    right = quantized(weight, qparams(5)).float()
    assert torch.equal(gptq(weight, moments, qparams(5), 0.01), right)


def cost(error: Tensor, moments: Tensor) -> Tensor:
    return ((error @ moments) * error).sum(1)


def test_near_the_best_of_all_integers() -> None:
    """Of four weights all neighbours are tried: 81 for each."""
    torch.manual_seed(1)
    x = torch.randn(500, 4) @ torch.randn(4, 4)
    moments = x.t() @ x / len(x)
    weight = torch.randn(50, 4) * 2
    found = cost(gptq(weight, moments, qparams(50), 1e-4) - weight, moments)
    nearest = weight.round()
    steps = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=4)))
    best = torch.stack([cost(nearest + step - weight, moments) for step in steps]).amin(0)
    plain = cost(nearest - weight, moments)
    assert found.sum() - best.sum() < 0.5 * (plain.sum() - best.sum())


@pytest.mark.parametrize("loud", [1.0, 300.0])
def test_a_loud_input_does_not_hush_the_others(loud: float) -> None:
    """A share of the mean of the diagonal would: at 300 nothing would be taken back."""
    torch.manual_seed(0)
    x = torch.randn(2000, 64) @ torch.randn(64, 64)
    x[:, 5] *= loud
    moments = x.t() @ x / len(x)
    weight = torch.randn(32, 64) * 2
    weight[:, 5].round_()  # so that all of the error is of the others
    plain = cost(weight.round() - weight, moments)
    found = cost(gptq(weight, moments, qparams(32), 0.01) - weight, moments)
    assert found.sum() < 0.6 * plain.sum()


def test_inputs_that_are_always_zero() -> None:
    moments = torch.zeros(3, 3)
    moments[0, 0] = 1.0
    weight = torch.tensor([[1.2, 2.4, -3.3]])
    assert gptq(weight, moments, qparams(1), 0.01).tolist() == [[1.0, 2.0, -3.0]]


@pytest.mark.parametrize("statistic", [MeanSquare(), SecondMoments()], ids=str)
def test_two_halves_are_one_pass(statistic: MeanSquare | SecondMoments) -> None:
    x = torch.randn(3, 10, 6)
    whole = statistic.update(None, x)
    rows = x.reshape(-1, 6)
    right = rows.square().mean(0) if isinstance(statistic, MeanSquare) else rows.t() @ rows / 30
    torch.testing.assert_close(whole.mean, right)
    parts = statistic.merge(statistic.update(None, x[:1]), statistic.update(None, x[1:]))
    torch.testing.assert_close(parts.mean, whole.mean)
    empty = statistic.update(statistic.update(None, x[:0]), x)
    torch.testing.assert_close(empty.mean, whole.mean)
    assert empty.values == parts.values == whole.values == 30


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("weight_only", {"group_size": 32}),
        ("weight_only", {}),
        ("weight_only", {"group_size": 32, "symmetric": False}),
        ("dynamic", {}),
    ],
    ids=str,
)
def test_in_a_graph_and_in_a_module(mode: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    layer, mix = nn.Linear(64, 16), torch.randn(64, 64)
    data = [torch.randn(256, 64) @ mix for _ in range(3)]
    qconfig = octavo.weight_only_qconfig(4, **options)  # type: ignore[arg-type]
    if mode == "dynamic":
        qconfig = replace(qconfig, activation=octavo.dynamic_qconfig().activation)

    def made(scope: str, *methods: octavo.WeightMethod) -> nn.Module:
        return octavo.quantize(
            layer,
            calibration=data,
            qconfig=qconfig,
            mode=mode,
            bias_correction=False,  # modules keep their biases
            weights=methods,
            progress=False,
            scope=scope,
        )

    with torch.no_grad():
        exact = layer(data[0])
        methods = (octavo.Clip(), octavo.GPTQ())
        graph, module = (made(scope, *methods)(data[0]) for scope in ("model", "modules"))
        nearest = (made("modules")(data[0]) - exact).norm()
    torch.testing.assert_close(graph, module, rtol=1e-3, atol=1e-3)
    assert (module - exact).norm() < 0.85 * nearest
