"""Other integers than static int8: each call's own ranges, weights alone, four bits, sixteen."""

from __future__ import annotations

import pytest
import torch
from litert_models import SHARE, SIXTEEN
from torch import nn

import octavo

LAYERS = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
GROUPS = octavo.weight_only_qconfig(4, group_size=8)
AFFINE = octavo.weight_only_qconfig(4, group_size=8, symmetric=False)
# how -> the first layer's operators, and the type of its weight in the file
CASES = {
    "dynamic": ({"mode": "dynamic"}, ["FULLY_CONNECTED float32"], "INT8"),
    "weights": ({"mode": "weight_only"}, ["DEQUANTIZE float32", "FULLY_CONNECTED float32"], "INT8"),
    "four bits": (
        {"mode": "weight_only", "qconfig": octavo.weight_only_qconfig(4)},
        ["DEQUANTIZE float32", "FULLY_CONNECTED float32"],
        "INT4",
    ),
    "groups": (
        {"mode": "weight_only", "qconfig": GROUPS},
        ["DEQUANTIZE float32", "RESHAPE float32", "FULLY_CONNECTED float32"],
        "INT4",
    ),
    "affine groups": (
        {"mode": "weight_only", "qconfig": AFFINE},
        ["DEQUANTIZE float32", "RESHAPE float32", "FULLY_CONNECTED float32"],
        "INT4",
    ),
    "four bits, static": (
        {"qconfig": octavo.qat_qconfig("edge", weight_bits=4)},
        ["FULLY_CONNECTED int8"],
        "INT4",
    ),
    "sixteen bits": ({"qconfig": SIXTEEN}, ["FULLY_CONNECTED int16"], "INT8"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mode(name, agrees):
    how, operators, dtype = CASES[name]
    x = torch.randn(6, 32)
    static = how.get("mode", "static") == "static"
    share = 0.02 if name == "sixteen bits" else SHARE  # its kernels round twice
    run = agrees(LAYERS, x, calibration=[(x,)] if static else None, share=share, **how)
    assert run.kernels["0"] == operators
    from octavo.runtimes.litert.export import to_tflite
    from octavo.runtimes.litert.flatbuffer import schema

    model = schema.ModelT.InitFromPackedBuf(to_tflite(run.model.graph).data)
    weights = [t for t in model.subgraphs[0].tensors if t.name == b"0.weight"]
    assert [t.type for t in weights] == [getattr(schema.TensorType, dtype)]


def test_one_range_for_all_rows_is_written_out(agrees):
    x = torch.randn(6, 32)
    how = {"mode": "dynamic", "qconfig": octavo.dynamic_qconfig("edge", per_token=False)}
    run = agrees(LAYERS, x, calibration=None, **how)
    assert {"REDUCE_MIN float32", "REDUCE_MAX float32", "ROUND float32"} <= run.operators
