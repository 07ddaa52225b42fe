"""Coverage: the share of multiply-adds on integers, in words, and what in float costs."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.model.coverage import Coverage, FloatLayer, coverage

HOST = octavo.host_target()


class Net(nn.Module):
    """A convolution of 3/4 of the multiply-adds, and a linear layer of 1/4 behind a softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.softplus(self.conv(x)))


CONV, HEAD = 6 * 8 * 4 * 3, 6 * 8 * 8


def quantized(**options: object) -> octavo.QuantizedModel:
    data = [torch.randn(2, 4, 10)]
    options = {"calibration": data, "target": HOST, "progress": False} | options
    return octavo.quantize(Net().eval(), **options)  # type: ignore[arg-type]


def test_it_counts_by_how_layers_run() -> None:
    summary = quantized().summary()
    assert summary.coverage.multiply_adds == {"int8": 2 * (CONV + HEAD)}
    assert summary.coverage.share == 1
    assert str(summary).startswith(f"100 % of the multiply-adds in int8 on torch (target {HOST})\n")
    in_float = quantized(qconfig=octavo.QConfigMapping().set_module_name("conv", None)).summary()
    assert in_float.coverage.multiply_adds == {"int8": 2 * HEAD, "float": 2 * CONV}
    assert in_float.headline == "40 % of the multiply-adds in int8"
    assert in_float.coverage.floats[0] == FloatLayer(
        "conv", "conv1d", "the rule module name 'conv'", 2 * CONV, 4 * (6 * 4 * 3 + 6)
    )


def test_modes_are_said_truthfully() -> None:
    warnings.simplefilter("ignore", octavo.OctavoWarning)  # torch has no kernel for the convolution
    dynamic, only = octavo.dynamic_qconfig(HOST), octavo.weight_only_qconfig()
    mapping = octavo.QConfigMapping().set_module_name("conv", only).set_module_name("head", dynamic)
    summary = quantized(qconfig=mapping).lower("reference").summary()
    assert summary.coverage.multiply_adds == {"weight_only": 2 * CONV, "dynamic": 2 * HEAD}
    assert summary.headline == (
        "40 % of the multiply-adds in dynamic int8, 60 % in float from integer weights"
    )


def test_what_a_runtime_runs_in_float_counts_as_float() -> None:
    q = quantized()
    here = coverage(q.graph, q.plan, q.lowered)
    elsewhere = octavo.runtimes.Lowered(
        q.lowered.run, {}, {"conv": "no kernel for one axis"}, runtime="mine"
    )
    there = coverage(q.graph, q.plan, elsewhere)
    assert there.multiply_adds == {"int8": 2 * HEAD, "float": 2 * CONV}
    assert there.bytes == here.bytes
    assert [layer for layer in there.floats if layer.runtime] == [
        FloatLayer("conv", "conv1d", "no kernel for one axis", 2 * CONV, 0, "mine")
    ]


def test_bfloat16_is_float() -> None:
    mapping = octavo.QConfigMapping().set_module_name("head", torch.bfloat16)
    summary = quantized(qconfig=mapping).summary()
    assert summary.coverage.multiply_adds == {"int8": 2 * CONV, "bfloat16": 2 * HEAD}
    assert summary.float_layers["head"] == "in bfloat16, the rule module name 'head'"


def test_graphs_add_up_with_their_calls() -> None:
    q = quantized(qconfig=octavo.QConfigMapping().set_module_name("conv", None))
    one = coverage(q.graph, q.plan, q.lowered)
    both = one + coverage(q.graph, q.plan, q.lowered, calls=3, path="body.again")
    assert both.multiply_adds == {"int8": 8 * HEAD, "float": 8 * CONV}
    assert (both.bytes, both.layers) == (2 * one.bytes, 2 * one.layers)
    names = [layer.name for layer in both.floats if layer.op == "conv1d"]
    assert names == ["conv", "body.again.conv"]
    assert both.headline == one.headline


@pytest.mark.parametrize(
    ("counts", "headline"),
    [
        ({"int8": 9999, "float": 1}, "99.9 % of the multiply-adds in int8"),
        ({"int8": 1, "float": 9999}, "under 0.1 % of the multiply-adds in int8"),
        ({"float": 5}, "0 % of the multiply-adds on integers"),
        ({}, "no multiply-adds, 0.00 MB of integers"),
    ],
)
def test_it_never_says_all_or_nothing_of_what_is_not(counts: dict[str, int], headline: str) -> None:
    assert Coverage(counts).headline == headline


def test_what_costs_comes_first_and_the_rest_is_one_line() -> None:
    floats = (
        FloatLayer("norm", "layer_norm", "no kernel"),
        FloatLayer("a", "conv2d", "too small", 10),
        FloatLayer("words", "embedding", "tied", 0, 400),
        FloatLayer("b", "conv2d", "a rule", 20),
        FloatLayer("c", "linear", "too small", 30),
        FloatLayer("add", "add", "no kernel"),
        FloatLayer("cat", "cat", "no kernel"),  # moves values
    )
    covered = Coverage({"int8": 40, "float": 60}, 1000, 300, 2000, 9, floats)
    assert covered.costs() == [
        ("40 %", "a, c", "", "too small"),
        ("20 %", "b", "", "a rule"),
        ("0.00 MB", "words", "", "tied"),
    ]
    assert covered.rest() == "in float too, without multiply-adds: 1 layer_norm, 1 add"
    assert Coverage().rest() == ""


def test_bytes_of_integers_are_those_of_weights() -> None:
    covered = quantized().summary().coverage
    assert covered.integer_bytes == 6 * 4 * 3 + 8 * 8
    assert covered.float_bytes == 4 * (6 * 4 * 3 + 6 + 8 * 8 + 8)
