"""Float layers in bfloat16, against the same computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.errors import PlanError, RuntimeUnavailable
from octavo.quantization.bfloat16 import in_float32
from octavo.quantization.qconfig import Precision
from octavo.runtimes import cpu

BF16 = torch.bfloat16


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _quantized(
    net: nn.Module, x: Tensor, *names: str, to: Precision = BF16
) -> octavo.QuantizedModel:
    mapping = octavo.QConfigMapping()
    for name in names:
        mapping.set_module_name(name, to)
    target = octavo.host_target()
    return octavo.quantize(net, calibration=[x], qconfig=mapping, target=target, progress=False)


def test_a_layer_computes_in_bfloat16(net: nn.Sequential, x: Tensor) -> None:
    """All behind it is float, so that its own rounding is all there is."""
    q = _quantized(net, x, "5")
    before = octavo.quantize(net[:5], calibration=[x], target=octavo.host_target(), progress=False)
    linear = net[5]
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight.to(BF16), linear.bias.to(BF16)
    wanted = functional.linear(before(x).to(BF16), weight, bias).float()
    for runtime in ("reference", "torch"):
        found = q.lower(runtime)(x)
        assert found.dtype == torch.float32
        assert torch.allclose(found, wanted, rtol=2**-7, atol=1e-3)
    assert not torch.equal(q(x), _quantized(net, x, "5", to=None)(x))


def test_layers_in_a_row_hand_on_bfloat16(net: nn.Sequential, x: Tensor) -> None:
    q = _quantized(net, x, "2", "3")
    dtypes = {node.name: node.meta.dtype for node in q.graph.nodes if node.meta is not None}
    narrow = [name for name, dtype in dtypes.items() if dtype == "bfloat16"]
    assert narrow == ["1.bfloat16", "2.bfloat16", "3.bfloat16"]
    assert dtypes["3"] == "float32"
    assert "2" not in dtypes  # nobody reads it in float32
    kept = {n: t.dtype for n, t in q.graph.constants.items() if n.startswith(("2.", "3."))}
    assert kept == dict.fromkeys(["2.weight", "2.bias", "3.weight", "3.bias"], BF16)
    assert q.plan.tensors["2"].runs == "bfloat16"
    assert q.summary().float_layers["2"] == "in bfloat16, the rule module name '2'"
    assert q.summary().int8 == _quantized(net, x, "2", "3", to=None).summary().int8


def test_what_others_read_is_float32(x: Tensor) -> None:
    class Shared(nn.Module):
        """A weight that a bfloat16 layer has in common with an int8 one."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            first = self.first(x)
            result: Tensor = self.second(first) + first
            return result

    torch.manual_seed(0)
    net = Shared().eval()
    q = _quantized(net, x, "second")
    shape = net.first.weight.shape
    weights = [t.dtype for t in q.graph.constants.values() if t.shape == shape]
    assert set(weights) == {torch.int8, BF16}, "each layer has the weight in its own precision"
    assert q.graph.constants["second.bias"].dtype == BF16
    exact = net(x)
    for runtime in ("reference", "torch"):
        error = (q.lower(runtime)(x) - exact).norm() / exact.norm()
        assert error < 0.02


def test_a_file_keeps_it(net: nn.Sequential, x: Tensor, tmp_path: Path) -> None:
    q = _quantized(net, x, "2", "5")
    q.save(tmp_path / "m.octavo")
    loaded = octavo.load(tmp_path / "m.octavo")
    assert torch.equal(loaded(x), q(x))
    assert loaded.plan.tensors["5"].runs == "bfloat16"
    assert loaded.graph.constants["5.weight"].dtype == BF16
    assert loaded.summary().size_mb < _quantized(net, x, "2", "5", to=None).summary().size_mb


def test_other_runtimes_compute_it_in_float32(net: nn.Sequential, x: Tensor) -> None:
    q, plain = _quantized(net, x, "2", "3"), _quantized(net, x, "2", "3", to=None)
    wide = in_float32(q.graph)
    assert [node.name for node in wide.nodes] == [node.name for node in plain.graph.nodes]
    assert {t.dtype for t in wide.constants.values()} == {
        t.dtype for t in plain.graph.constants.values()
    }
    assert torch.equal(wide.constants["2.weight"], net[2].weight.to(BF16).float())  # type: ignore[arg-type]
    agreement = octavo.verify(q, [x], runtimes=["onnxruntime", "openvino"])
    assert agreement.passed, str(agreement)


def test_what_cannot_be_stays_float32(x: Tensor) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3))).eval()
    plan = _quantized(net, x, "1").plan
    assert plan.tensors["1.1"].runs == "bfloat16"
    assert plan.tensors["1.0"].runs == "float"
    assert str(plan.tensors["1.0"].reason) == (
        "float: the rule module name '1', but relu is no convolution or linear layer"
    )


def test_after_training_too(net: nn.Sequential, x: Tensor) -> None:
    mapping = octavo.QConfigMapping().set_module_name("3", BF16)
    target = octavo.host_target()
    qat = octavo.prepare_qat(net, x, mapping, target=target)
    qat(x).sum().backward()
    q = octavo.convert(qat.eval())
    assert q.graph.constants["3.weight"].dtype == BF16
    assert q(x).shape == (4, 10)


def test_sensitivity_is_of_the_others(net: nn.Sequential, x: Tensor) -> None:
    mapping = octavo.QConfigMapping().set_module_name("3", BF16)
    found = octavo.sensitivity(net, data=[x], calibration=[x], qconfig=mapping, progress=False)
    assert {layer.layer for layer in found.layers} == {"0", "2", "5"}


class Mixed(nn.Module):
    """Float layers of all kinds: a convolution, a product, a recurrent and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn = nn.Conv1d(8, 8, 3, padding=1), nn.LSTM(8, 8, batch_first=True)
        self.classes = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).transpose(1, 2)
        tokens = tokens + (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        result: Tensor = self.classes(self.rnn(tokens)[0])
        return result


@pytest.fixture
def mixed() -> octavo.QuantizedModel:
    """Only its last layer has integers."""
    torch.manual_seed(0)
    mapping = octavo.QConfigMapping().set_global(None)
    mapping.set_module_name("classes", octavo.weight_only_qconfig())
    x = torch.randn(2, 8, 6)
    return octavo.quantize(Mixed(), x, mode="weight_only", qconfig=mapping, progress=False)


def _db(exact: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_what_stays_float_is_float32_unless_asked(
    mixed: octavo.QuantizedModel, runtime: str
) -> None:
    x = torch.randn(3, 8, 6)
    lowered = mixed.lower(runtime)
    assert _db(mixed.lower("reference")(x), lowered(x)) > 75  # the last layer has two digits
    assert lowered.summary().precision == "float32"
    assert "what stays float computes in float32" in str(lowered.summary())


@pytest.mark.parametrize("runtime", ["reference", "torch", "openvino"])
def test_all_of_it_in_bfloat16(mixed: octavo.QuantizedModel, runtime: str) -> None:
    """The oracle follows."""
    if runtime == "openvino" and not cpu.has_bf16():
        pytest.skip("OpenVINO takes bfloat16 only on a CPU that has instructions for it")
    x = torch.randn(3, 8, 6)
    exact, narrow = mixed.lower("reference")(x), mixed.lower(runtime, precision="bfloat16")
    assert narrow(x).dtype == torch.float32
    assert 35 < _db(exact, narrow(x)) < 60
    assert narrow.summary().precision == "bfloat16"
    assert mixed.lower(runtime, precision="float32").summary().precision == "float32"


def test_onnxruntime_has_no_bfloat16(mixed: octavo.QuantizedModel) -> None:
    with pytest.raises(RuntimeUnavailable, match=r'onnxruntime runtime has no bfloat16.*"auto"'):
        mixed.lower("onnxruntime", precision="bfloat16")
    assert mixed.lower("onnxruntime", precision="auto").summary().precision == "float32"


@pytest.mark.parametrize("has_it", [False, True])
def test_auto_is_what_the_cpu_has(
    mixed: octavo.QuantizedModel, has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_bf16", lambda: has_it)
    found = mixed.lower("torch", precision="auto").summary().precision
    assert found == ("bfloat16" if has_it else "float32")


def test_the_plan_has_a_precision_and_lower_may_ask_for_another(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), torch.randn(4, 8)
    mapping = octavo.QConfigMapping().set_module_name("0", None)
    q = octavo.quantize(net, x, qconfig=mapping, precision="bfloat16", progress=False)
    assert q.plan.precision == "bfloat16"
    assert "dynamic; what stays float is bfloat16" in str(q.plan).splitlines()[0]
    q.save(tmp_path / "m.octavo")
    loaded = octavo.load(tmp_path / "m.octavo")
    assert loaded.summary().precision == "bfloat16"
    assert torch.equal(loaded(x), q(x))
    assert q.lower("torch", precision="float32").summary().precision == "float32"


def test_no_such_precision(mixed: octavo.QuantizedModel) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"precision='int3'; choose one of 'float32'"):
        mixed.lower("torch", precision="int3")
    with pytest.raises(PlanError, match="precision is 'half': there is 'float32'"):
        octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4), precision="half")
