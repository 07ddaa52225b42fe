"""What CONTRIBUTING says under "How to add", done from outside of src: each is one object.

A weight method's is in tests/quantization/weights/test_method.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar

import contract
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo.errors import PlanError, RuntimeUnavailable
from octavo.measuring.parity import Threshold
from octavo.numerics.observers import OBSERVERS, Bounds, MinMax
from octavo.quantization.fusions import Fusion
from octavo.quantization.targets import TARGETS, Target
from octavo.runtimes import RUNTIMES
from octavo.runtimes.torch import integer_kernels, kernels
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.torch.kernel import Kernel

HOST = octavo.host_target()


def quantized(model: nn.Module, x: Tensor, **settings: Any) -> octavo.QuantizedModel:
    torch.manual_seed(0)
    settings = {"target": HOST, "calibration": [x], "progress": False} | settings
    return octavo.quantize(model.eval(), x, **settings)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 64).reshape(8, 8)


# --- an observer


@dataclass(frozen=True)
class Deviations:
    """The mean and so many standard deviations on both sides of it."""

    name: ClassVar[str] = "deviations"
    count: float = 1.0

    def update(self, state: tuple[Tensor, ...] | None, x: Tensor, channel_axis: int | None) -> Any:
        new = (torch.tensor(x.numel()), x.double().sum(), x.double().square().sum())
        return new if state is None else self.merge(state, new)

    def merge(self, one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Any:
        return tuple(a + b for a, b in zip(one, other, strict=True))

    def bounds(self, state: tuple[Tensor, ...], scheme: octavo.Scheme) -> Bounds:
        count, total, squares = state
        mean = total / count
        reach = self.count * (squares / count - mean**2).sqrt()
        return Bounds((mean - reach).float(), (mean + reach).float())

    def to_dict(self) -> dict[str, Any]:
        return {"observer": self.name, "count": self.count}


def test_an_observer(net, x, monkeypatch, tmp_path):
    monkeypatch.setitem(OBSERVERS, Deviations.name, Deviations)
    qconfig = octavo.static_qconfig(HOST, observer=Deviations(count=1.5))
    q = quantized(net, x, qconfig=qconfig)
    first = next(node for node in q.graph.nodes if node.short_op == "quantize")
    reach = 1.5 * float(x.std(correction=0))  # the mean is 0
    assert first.args[1] == pytest.approx(2 * reach / 255, rel=1e-5)
    assert first.args[2] in (127, 128)
    assert octavo.verify(q, [x], runtimes=["torch"]).passed
    q.save(tmp_path / "q.octavo")
    loaded = octavo.load(tmp_path / "q.octavo")
    assert loaded.plan == q.plan
    assert torch.equal(loaded(x), q(x))


# --- an int8 kernel


def by_table(context: Context, chain: Chain) -> Call:
    """An activation on integers: what it makes of each of them is looked up."""
    x, source = context.source(chain.layer.args[0])
    if chain.out is None:
        raise Unsupported("its result is float")
    floats = integer_kernels.dequantize(source.scale, source.zero_point)(torch.arange(256))
    table = integer_kernels.quantize(chain.out)(F.hardswish(floats))
    return Call("toy table", lambda q: table[q.long()], (x,))


TABLE = Kernel(("hardswish",), by_table)


def test_a_kernel(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Hardswish(), nn.Conv1d(8, 4, 1))
    x = torch.randn(4, 8, 16)
    rules = octavo.QConfigMapping().set_object_type("hardswish", octavo.static_qconfig(HOST))
    q = quantized(net, x, qconfig=rules)
    assert q.lower("torch").lowered.fallbacks == {"1": "torch has no int8 kernel for hardswish"}
    monkeypatch.setattr(kernels, "KERNELS", [*kernels.KERNELS, TABLE])
    again = q.lower("torch")
    assert again.lowered.kernels["1"] == "toy table"
    assert again.lowered.fallbacks == {}
    (found,) = octavo.verify(again, [x], runtimes=["torch"]).runtimes
    assert found.passed
    assert {layer.layer: layer.steps for layer in found.layers}["1"] == 0


def test_a_wrong_kernel_does_not_pass(monkeypatch):
    def wrong(context: Context, chain: Chain) -> Call:
        call = by_table(context, chain)
        return replace(call, function=lambda q: call.function(q).clamp(max=100))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Hardswish(), nn.Conv1d(8, 4, 1))
    x = torch.randn(4, 8, 16)
    rules = octavo.QConfigMapping().set_object_type("hardswish", octavo.static_qconfig(HOST))
    monkeypatch.setattr(kernels, "KERNELS", [*kernels.KERNELS, Kernel(("hardswish",), wrong)])
    with pytest.raises(octavo.OctavoError, match="computes something else"):
        quantized(net, x, qconfig=rules).lower("torch")


# --- a runtime


@pytest.fixture
def toy() -> Iterator[None]:
    """tests/toy_runtime.py, known for a test."""
    import_module("toy_runtime")
    yield
    del RUNTIMES["toy"], sys.modules["toy_runtime"]


@pytest.mark.usefixtures("toy")
def test_a_runtime(net, x, monkeypatch):
    monkeypatch.setattr("octavo.runtimes.fastest.SECONDS", 0.1)
    oracle = RUNTIMES["reference"]
    monkeypatch.setitem(RUNTIMES, "inductor", oracle)  # which compiles for half a minute
    q = quantized(net, x)
    lowered = q.lower("toy", batch=8)
    assert lowered.lowered.runtime == "toy"
    assert lowered.lowered.kernels == {"0": "toy linear", "2": "toy linear"}
    assert lowered.lowered.note == "for batches of 8"
    assert torch.equal(lowered(x), q.lower("reference")(x))
    assert lowered.lowered.agreement.agrees
    with pytest.raises(RuntimeUnavailable, match="the toy runtime has no option 'threads'"):
        q.lower("toy", threads=1)
    with pytest.raises(RuntimeUnavailable, match="the toy runtime has no bfloat16"):
        q.lower("toy", precision="bfloat16")
    found = {runtime.runtime: runtime for runtime in octavo.verify(q, [x]).runtimes}
    assert found["toy"].passed
    assert max(layer.steps or 0 for layer in found["toy"].layers) == 0
    assert "toy" in q.lower("fastest").lowered.note
    with pytest.raises(RuntimeUnavailable, match=r"no runtime 'nope': there is .*'toy'"):
        q.lower("nope")


@pytest.mark.sweep
@pytest.mark.usefixtures("toy")
def test_a_runtime_is_measured(net, x, tmp_path):
    q = quantized(net, x)
    q.save(tmp_path / "q.octavo")
    (row,) = [
        row
        for row in octavo.bench(
            tmp_path / "q.octavo", batches=[2], runtimes=["toy"], seconds=0.05, progress=False
        ).rows
        if row.name == "int8 toy"
    ]
    assert row.error == ""
    assert row.integers == "100 %"
    assert row.load_s > 0  # in a new process, which imports tests/toy_runtime.py
    compared = octavo.compare(
        net, q, [x], runtimes=["torch", "toy"], rounds=3, cold_starts=False, progress=False
    )
    assert [row.name for row in compared.rows][2:] == ["int8 torch", "int8 toy"]


def test_a_runtime_of_a_script_is_not_known_to_a_new_process(monkeypatch, net, x, tmp_path):
    def lower(*args):
        return RUNTIMES["reference"].lower(*args)

    lower.__module__ = "__main__"
    monkeypatch.setitem(RUNTIMES, "mine", replace(RUNTIMES["reference"], lower=lower))
    quantized(net, x).save(tmp_path / "q.octavo")
    found = octavo.bench(
        tmp_path / "q.octavo", batches=[2], runtimes=["mine"], seconds=0.05, progress=False
    )
    assert "move it to a module that the script imports" in found.rows[-1].error


@pytest.mark.usefixtures("toy")
def test_a_runtime_keeps_the_contract():
    for name in contract.NAMES["static"]:
        layers = contract.layers_of("toy", "static", name)
        assert layers
        assert all(layer.within(Threshold()) for layer in layers), name


# --- a target

_SEVEN_BITS = octavo.QConfig(
    octavo.QSpec(octavo.Scheme("uint7"), MinMax()),
    octavo.QSpec(octavo.Scheme("int8", symmetric=True, narrow_range=True), MinMax()),
)
TOY = Target(
    name="toy",
    about="seven bits, one scale for each weight, a relu behind a linear layer",
    qconfigs={"static": _SEVEN_BITS},
    operators={"static": frozenset({"linear"})},
    fusions={"linear": Fusion(frozenset({"relu"}))},
)


def test_a_target(net, x, monkeypatch, tmp_path):
    monkeypatch.setitem(TARGETS, "toy", TOY)
    q = quantized(net, x, target="toy")
    assert q.target == "toy"
    assert q.plan.tensors["0"].fused_into == "1"
    rounded = [node for node in q.graph.nodes if node.short_op == "quantize"]
    assert [node.args[3:5] for node in rounded] == [(0, 127), (0, 127)]
    assert rounded[0].args[1] == pytest.approx(2 / 127, rel=1e-5)
    assert octavo.static_qconfig("toy") == _SEVEN_BITS
    found = octavo.verify(q, [x], runtimes=["torch"])
    assert found.passed, str(found)
    assert found.target == "toy"
    q.save(tmp_path / "q.octavo")
    assert torch.equal(octavo.load(tmp_path / "q.octavo")(x), q(x))
    with pytest.raises(PlanError, match="the target 'toy' has no mode 'dynamic'; it has 'static'"):
        quantized(net, x, target="toy", mode="dynamic", calibration=None)
    with pytest.raises(PlanError, match="the target 'toy' has no mode 'dynamic'"):
        octavo.dynamic_qconfig("toy")


def test_a_target_that_is_not_known(net, x, monkeypatch, tmp_path):
    with monkeypatch.context() as known:
        known.setitem(TARGETS, "toy", TOY)
        quantized(net, x, target="toy").save(tmp_path / "q.octavo")
    with pytest.raises(octavo.OctavoError, match="unknown target 'toy'"):
        octavo.load(tmp_path / "q.octavo")
