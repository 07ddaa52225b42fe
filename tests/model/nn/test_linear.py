"""`octavo.nn.Linear`: hand-computed integers, and the captured layer's results."""

from __future__ import annotations

import copy
import io
import threading
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import octavo
from octavo import QConfig, QSpec, Scheme
from octavo.errors import InputError, PlanError

QCONFIGS = {
    "dynamic": octavo.dynamic_qconfig(),
    "dynamic, one range": octavo.dynamic_qconfig(per_token=False),
    "int8": octavo.weight_only_qconfig(),
    "uint8": octavo.weight_only_qconfig(symmetric=False),
    "int4": octavo.weight_only_qconfig(4, group_size=8),
    "uint4": octavo.weight_only_qconfig(4, group_size=16, symmetric=False),
    "one scale": QConfig(None, QSpec(Scheme("int8", symmetric=True), octavo.MinMax())),
}


def test_integers_and_scales_by_hand() -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.tensor([[1.27, -0.5], [0.0, 2.54]]))
    layer.bias = nn.Parameter(torch.tensor([0.5, -1.0]))
    q = octavo.nn.Linear.from_float(layer, octavo.weight_only_qconfig())
    state = q.state_dict()
    assert list(state) == ["bias", "weight", "weight_scale", "weight_zero_point"]
    assert state["weight"].tolist() == [[127, -50], [0, 127]]
    assert state["weight"].dtype == torch.int8
    torch.testing.assert_close(state["weight_scale"], torch.tensor([[0.01], [0.02]]))
    assert state["weight_zero_point"].tolist() == [[0], [0]]
    x = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(q(x), torch.tensor([0.77, 4.08]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", QCONFIGS)
def test_it_computes_what_the_captured_layer_does(name: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16), torch.randn(6, 32)
    module = octavo.nn.from_float(layer, QCONFIGS[name])
    graph = octavo.quantize(layer, x, qconfig=QCONFIGS[name], progress=False)
    torch.testing.assert_close(module(x), graph(x), rtol=0, atol=0)
    captured = graph.state_dict()
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, captured[key]), key


@given(
    leading=st.lists(st.integers(0, 4), max_size=4),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    bias=st.booleans(),
    name=st.sampled_from(["dynamic", "int8", "uint8"]),
)
def test_any_leading_shape(
    leading: list[int], inputs: int, outputs: int, bias: bool, name: str
) -> None:
    layer = nn.Linear(inputs, outputs, bias=bias)
    q = octavo.nn.from_float(layer, QCONFIGS[name])
    x = torch.randn(*leading, inputs)
    exact = layer(x).detach()
    assert q(x).shape == exact.shape
    # Half a step of each weight and of each input, at most.
    steps = q.dequantized()["weight"].abs().amax() / 100 + 1e-6
    bound = (
        (x.abs().amax() if x.numel() else 0)
        * inputs
        * (steps + layer.weight.detach().abs().max() / 100)
    )
    assert not x.numel() or float((q(x) - exact).abs().max()) <= float(bound) + 1e-6


def test_rows_with_a_nan_are_nan_and_the_others_are_what_they_are() -> None:
    q = octavo.nn.from_float(nn.Linear(8, 4), octavo.dynamic_qconfig())
    x = torch.randn(5, 8)
    exact = q(x)
    x[2, 3] = float("nan")
    assert bool(q(x)[2].isnan().all())
    assert torch.equal(q(x)[[0, 1, 3, 4]], exact[[0, 1, 3, 4]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_come_back_as_such(dtype: torch.dtype) -> None:
    layer = nn.Linear(32, 16).to(dtype)
    q, x = (
        octavo.nn.from_float(layer, octavo.weight_only_qconfig()),
        torch.randn(3, 32, dtype=dtype),
    )
    assert q(x).dtype == dtype
    assert (q.weight.dtype, q.weight.shape) == (dtype, layer.weight.shape)
    torch.testing.assert_close(q(x), layer(x), rtol=0.1, atol=0.05)


def test_a_weight_whose_memory_is_in_another_order() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    layer.weight = nn.Parameter(torch.randn(32, 16).t())
    x = torch.randn(4, 32)
    for mode in ("dynamic", "weight_only"):
        graph = octavo.quantize(layer, x, mode=mode, progress=False)
        assert float((graph(x) - layer(x)).norm() / layer(x).norm()) < 0.02


def test_others_read_its_weight_as_floats() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig())
    product = nn.functional.linear(x, q.weight, q.bias)
    torch.testing.assert_close(product, q(x), rtol=1e-3, atol=1e-3)
    assert (q.weight.device, q.weight.dtype) == (x.device, torch.float32)
    assert bool(torch.overrides.has_torch_function((q.weight,)))  # so no fused kernel takes it


def test_a_state_dict_makes_another_layer_this_one_or_is_refused() -> None:
    q, other = (octavo.nn.from_float(nn.Linear(16, 8), QCONFIGS["int4"]) for _ in range(2))
    x = torch.randn(3, 16)
    assert not torch.equal(q(x), other(x))
    other.load_state_dict(q.state_dict())
    assert torch.equal(q(x), other(x))
    for wrong in (octavo.nn.from_float(nn.Linear(16, 8), QCONFIGS["uint8"]), nn.Linear(16, 8)):
        with pytest.raises(RuntimeError, match=r"'weight' is .* there and uint8\[64\] here"):
            other.load_state_dict(wrong.state_dict())
        assert torch.equal(q(x), other(x))
    signed = octavo.nn.from_float(nn.Linear(16, 8), QCONFIGS["int8"])
    with pytest.raises(RuntimeError, match=r"uint8\[8, 16\] there and int8\[8, 16\] here"):
        signed.load_state_dict(
            octavo.nn.from_float(nn.Linear(16, 8), QCONFIGS["uint8"]).state_dict()
        )


def test_integers_are_not_loaded_without_their_scales() -> None:
    q, other = (octavo.nn.from_float(nn.Linear(16, 8), QCONFIGS["int8"]) for _ in range(2))
    x = torch.randn(3, 16)
    exact = q(x)
    without = {name: t for name, t in other.state_dict().items() if name != "weight_scale"}
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="'weight_scale' is missing of the weight"):
            q.load_state_dict(without, strict=strict)
        assert torch.equal(q(x), exact)
    shift = other.state_dict()["bias"] - q.state_dict()["bias"]
    q.load_state_dict({"bias": other.state_dict()["bias"]}, strict=False)
    torch.testing.assert_close(q(x), exact + shift)


def test_copies_files_and_threads() -> None:
    q, x = octavo.nn.from_float(nn.Linear(64, 32), octavo.dynamic_qconfig()), torch.randn(9, 64)
    y = copy.deepcopy(q)(x)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(q(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(result, y) for result in results)
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), y)
    assert torch.equal(copy.deepcopy(q).to("cpu")(x), y)


def test_what_cannot_be_is_one_error() -> None:
    layer = nn.Linear(8, 4)
    q = octavo.nn.from_float(layer, octavo.dynamic_qconfig())
    with pytest.raises(InputError, match=r"takes floats \[..., 8\], not float32\[2, 5\]"):
        q(torch.rand(2, 5))
    with pytest.raises(InputError, match=r"not int64\[8\]"):
        q(torch.arange(8))
    with pytest.raises(octavo.OctavoError, match="cannot change its dtype"):
        q.half()
    with pytest.raises(PlanError, match="its QConfig is static"):
        octavo.nn.from_float(layer, octavo.static_qconfig())
    with pytest.raises(PlanError, match="group_size 3 does not divide its weight"):
        octavo.nn.from_float(layer, octavo.weight_only_qconfig(4, group_size=3))
    layer.weight.data[0, 0] = float("inf")
    with pytest.raises(PlanError, match="NaN or an infinity"):
        octavo.nn.from_float(layer, octavo.dynamic_qconfig())
    with pytest.raises(PlanError, match="it is on meta"):
        octavo.nn.from_float(nn.Linear(8, 4, device="meta"), octavo.dynamic_qconfig())
    with pytest.raises(PlanError, match="no quantized form of a ReLU"):
        octavo.nn.from_float(nn.ReLU(), octavo.dynamic_qconfig())


def test_it_stands_in_a_model_whose_other_parts_are_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        octavo.nn.from_float(nn.Linear(8, 8), octavo.weight_only_qconfig()), nn.Linear(8, 1)
    ).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, losses = torch.randn(32, 8), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert not any("0." in name for name, _ in model.named_parameters())


def test_a_gradient_that_ends_is_told_in_training() -> None:
    q = octavo.nn.from_float(nn.Linear(8, 4), octavo.dynamic_qconfig()).train()
    x = torch.randn(2, 8, requires_grad=True)
    with pytest.warns(octavo.OctavoWarning, match="no gradient goes through a QuantizedLinear"):
        assert not q(x).requires_grad
    with pytest.warns(octavo.OctavoWarning, match="no gradient goes through a QuantizedLinear"):
        q(input=x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q.eval()(x)
        q.train()(x.detach())


class TestAtOnce:
    """A layer that is ready calls its kernel; what that has to say no to goes the long way."""

    @staticmethod
    def layer(qconfig: octavo.QConfig, bias: bool = True) -> tuple[octavo.nn.Linear, list[int]]:
        torch.manual_seed(0)
        layer = octavo.nn.Linear.from_float(nn.Linear(64, 40, bias=bias), qconfig)
        layer.eval()
        layer(torch.randn(1, 64))
        if not layer._products:
            pytest.skip("there are no such kernels here")
        long_way: list[int] = []
        compute = layer.compute
        layer.compute = lambda x: (long_way.append(1), compute(x))[1]  # type: ignore[assignment]
        return layer, long_way

    @pytest.mark.parametrize("bits", [8, 4])
    @pytest.mark.parametrize("bias", [True, False])
    def test_results_are_the_same(self, bits: int, bias: bool) -> None:
        group = 32 if bits == 4 else None
        layer, long_way = self.layer(octavo.weight_only_qconfig(bits, group_size=group), bias)
        for shape in ((64,), (1, 64), (2, 3, 64), (2, 1, 1, 64)):
            x = torch.randn(shape)
            count = len(long_way)
            at_once = layer(x)
            assert len(long_way) == count
            assert torch.equal(at_once, layer.compute(x))
            assert at_once.shape == (*shape[:-1], 40)

    def test_what_is_not_plain_goes_the_long_way(self) -> None:
        layer, long_way = self.layer(octavo.weight_only_qconfig())
        x = torch.randn(4, 64)
        others = [x.bfloat16(), torch.randn(64, 4).t(), x[:0], torch._neg_view(x)]
        for index, other in enumerate(others, 1):
            exact = layer.compute(other.resolve_neg().contiguous())
            assert torch.equal(layer(other), exact)
            assert len(long_way) == 2 * index
        with pytest.raises(InputError):
            layer(torch.randn(4, 32))
        x[1, 3] = torch.inf
        exact = torch.nn.functional.linear(x, layer.weight[:], layer.own_tensors()["bias"])
        assert torch.equal(layer(x).isnan(), exact.isnan())
        assert torch.equal(layer(x).isinf(), exact.isinf())

    def test_other_tensors_are_taken_up(self) -> None:
        layer, _ = self.layer(octavo.weight_only_qconfig())
        other = octavo.nn.Linear.from_float(nn.Linear(64, 40), octavo.weight_only_qconfig())
        x = torch.randn(2, 64)
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))
        assert torch.equal(layer(x), other(x))
