"""The runtime `litert`: batches, options, what is in float, what is missing."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import MissingExtra
from octavo.runtimes import RUNTIMES, is_for


@pytest.fixture(scope="module")
def q() -> octavo.QuantizedModel:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1)]
    data = [torch.randn(4, 3, 10, 10) for _ in range(2)]
    return octavo.quantize(
        nn.Sequential(*layers).eval(), calibration=data, target="edge", progress=False
    )


def test_it_runs_any_batch_and_size(q):
    pytest.importorskip("ai_edge_litert")
    oracle, lowered = q.lower("reference"), q.lower("litert")
    for shape in [(1, 3, 10, 10), (5, 3, 10, 10), (2, 3, 12, 9), (1, 3, 10, 10)]:
        x = torch.randn(shape)
        torch.testing.assert_close(lowered(x), oracle(x))


def test_what_runs_in_float_is_said(q):
    pytest.importorskip("ai_edge_litert")
    lowered = q.lower("litert").lowered
    assert lowered.kernels["0"] == "litert CONV_2D"
    assert "litert runs it in float (litert DEQUANTIZE LOGISTIC MUL)" in lowered.fallbacks["3"]


def test_verify_compares_it_where_it_is_meant(q):
    pytest.importorskip("ai_edge_litert")
    assert is_for("litert", "edge")
    assert not is_for("litert", "x86")
    parity = octavo.verify(q, runtimes=["litert"])
    assert parity.passed
    assert {layer.steps for layer in parity.runtimes[0].layers} <= {0, 1, None}
    assert max(layer.unequal for layer in parity.runtimes[0].layers) < 1e-3


def test_threads_may_call_it_at_once(q):
    pytest.importorskip("ai_edge_litert")
    lowered, oracle = q.lower("litert"), q.lower("reference")
    inputs = [torch.randn(1, 3, 10, 10) for _ in range(4)]
    found: dict[int, torch.Tensor] = {}

    def call(index: int) -> None:
        for _ in range(5):
            found[index] = lowered(inputs[index])

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, x in enumerate(inputs):
        torch.testing.assert_close(found[index], oracle(x))


def test_without_the_package(q, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    assert RUNTIMES["litert"].targets == ("edge",)
    with pytest.raises(MissingExtra, match=r"pip install .octavo\[litert\]"):
        q.lower("litert")
