"""Weights in blocks, as ONNX Runtime's own operators read them: exact but for two digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.measuring.metrics import Likeness
from octavo.runtimes import RUNTIMES, cpu

pytest.importorskip("onnxruntime")
needs_blocks = pytest.mark.skipif(
    cpu.saturates(), reason="written where no pair of products overflows"
)

SCHEMES = {
    "int8": octavo.weight_only_qconfig(),
    "uint8": octavo.weight_only_qconfig(8, symmetric=False),
    "int8 in groups": octavo.weight_only_qconfig(8, group_size=32),
    "int4": octavo.weight_only_qconfig(4),
    "uint4 in groups": octavo.weight_only_qconfig(4, group_size=32, symmetric=False),
    "int4 in groups of no such size": octavo.weight_only_qconfig(4, group_size=48),
}


def lowered(net: nn.Module, x: Tensor, scheme: str) -> octavo.QuantizedModel:
    qconfig = SCHEMES[scheme]
    q = octavo.quantize(net, x, mode="weight_only", qconfig=qconfig, progress=False)
    return q.lower("onnxruntime")


def operators(q: octavo.QuantizedModel, dialect: Any) -> set[str]:
    from octavo.runtimes.onnx.export import to_onnx

    return {node.op_type for node in to_onnx(q.graph, dialect).graph.node}


def sqnr_db(q: octavo.QuantizedModel, x: Tensor) -> float:
    likeness = Likeness()
    likeness.update(q.lower("reference")(x).double(), q(x).double())
    return likeness.sqnr_db


@needs_blocks
@pytest.mark.parametrize("sizes", [(5, 96), (2, 5, 96), (2, 3, 5, 96)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_linear_layers(scheme: str, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    # Values of all sizes side by side, and a row of zeros, which has no scale.
    x = torch.randn(sizes) * torch.logspace(-3, 3, 96)
    x[0] = 0.0
    q = lowered(nn.Linear(96, 37), x, scheme)
    assert sqnr_db(q, x) > 80
    assert "MatMulNBits" in operators(q, RUNTIMES["onnxruntime"].onnx.dialect)
    assert torch.equal(q(x[:1]), q(x)[:1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tables(scheme: str) -> None:
    torch.manual_seed(0)
    net, ids = nn.Embedding(19, 96), torch.randint(19, (3, 5))
    q = lowered(net, ids, scheme)
    torch.testing.assert_close(q(ids), q.lower("reference")(ids), rtol=1e-6, atol=1e-7)


@needs_blocks
def test_files_for_others_have_standard_operators_alone() -> None:
    q = lowered(nn.Linear(96, 37), torch.randn(3, 96), "uint4 in groups")
    assert operators(q, RUNTIMES["openvino"].onnx.dialect) == {"DequantizeLinear", "MatMul", "Add"}
    assert operators(q, None) == {"DequantizeLinear", "MatMul", "Add"}
