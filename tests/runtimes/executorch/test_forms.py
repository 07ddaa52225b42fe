"""A graph in ExecuTorch's words: its steps, run by torch, are the oracle's to the integer."""

from __future__ import annotations

import phones
import pytest
import torch
from torch import nn

import octavo
from octavo.graph.program import compile_steps

pytest.importorskip("executorch", reason="executorch is not installed")
pytestmark = pytest.mark.sweep  # which is imported for seconds


def forms_of(q):
    from octavo.runtimes.executorch.forms import forms_of

    return forms_of(q.graph)


def run(q, *tensors):
    """What the steps compute, by torch's definitions of ExecuTorch's operators."""
    forms = forms_of(q)
    names, steps = q.graph.input_names(), forms.steps
    return compile_steps(names, steps, forms.outputs, forms.constants)(*tensors)[0]


def functions(q):
    return [getattr(step.function, "__name__", "") for step in forms_of(q).steps]


@pytest.mark.parametrize("target", ["executorch", "x86", "tensorrt", "arm"])
def test_integers_of_every_kind_mean_the_same(target):
    """Signed, unsigned, symmetric ones of 255 values, one scale for a weight."""
    q = phones.for_phones(phones.image_net(), phones.IMAGES, target=target)
    x = phones.IMAGES[:3]
    torch.testing.assert_close(run(q, x), q.lower("reference")(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [4, 6])
def test_fewer_values_are_clipped(bits):
    qconfig = octavo.qat_qconfig("executorch", activation_bits=bits)
    q = phones.for_phones(phones.row_net(), phones.ROWS / 4, qconfig=qconfig)
    x = phones.ROWS * 4  # beyond the ranges that were calibrated
    torch.testing.assert_close(run(q, x), q.lower("reference")(x), atol=1e-5, rtol=0)
    assert functions(q).count("hardtanh.default") >= 4


def test_each_reader_has_a_dequantize_of_its_own():
    q = phones.for_phones(phones.Block().eval(), torch.randn(4, 8, 6, 6))
    forms = forms_of(q)
    readers = [step.out for step in forms.steps if step.out.startswith("x.dequantized.of.")]
    assert readers == ["x.dequantized.of.one", "x.dequantized.of.add"]


def test_dynamic_rows():
    q = phones.for_phones(phones.row_net(), phones.ROWS, calibration=None, mode="dynamic")
    torch.testing.assert_close(run(q, phones.ROWS), q.lower("reference")(phones.ROWS))
    names = functions(q)
    assert names.count("quantize_per_token.default") == 3


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_xnnpack_cannot_read_are_read_back_by_arithmetic(symmetric):
    qconfig = octavo.weight_only_qconfig(4, group_size=16, symmetric=symmetric)
    q = phones.for_phones(
        phones.row_net(), phones.ROWS, calibration=None, mode="weight_only", qconfig=qconfig
    )
    torch.testing.assert_close(run(q, phones.ROWS), q.lower("reference")(phones.ROWS))
    forms = forms_of(q)
    assert set(forms.in_float) == {"0", "2", "3"}
    why = forms.in_float["0"]
    assert why == (
        "its groups of 16 are no multiple of 32"
        if symmetric
        else "XNNPACK reads weights without zero points"
    )


def test_integers_leave_as_the_graph_has_them():
    """As a graph that is cut returns them, in their own type."""
    from dataclasses import replace

    from octavo.graph.graph import Ref
    from octavo.runtimes.executorch.forms import forms_of

    q = phones.for_phones(
        nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8)), phones.ROWS, target="x86"
    )
    graph = replace(q.graph, outputs=Ref("0.quantized")).pruned()
    forms = forms_of(graph)
    run = compile_steps(graph.input_names(), forms.steps, forms.outputs, forms.constants)
    oracle = compile_steps(
        q.graph.input_names(),
        octavo.graph.program.steps_of(graph),
        ["0.quantized"],
        graph.constants,
    )
    (integers,), (want,) = run(phones.ROWS), oracle(phones.ROWS)
    assert integers.dtype == torch.uint8
    assert torch.equal(integers, want)
