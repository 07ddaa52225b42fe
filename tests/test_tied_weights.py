"""Layers that share a weight: each computes with what the plan says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from octavo.errors import PlanError

INT4 = octavo.weight_only_qconfig(4, group_size=32)


class LM(nn.Module):
    """Embedding and head are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.l = nn.Embedding(100, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 100, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.l(self.emb(tokens)))  # type: ignore[no-any-return]


@pytest.fixture
def model() -> LM:
    torch.manual_seed(0)
    return LM().eval()


TOKENS = torch.arange(48).reshape(4, 12)


def quantized(model: nn.Module, rules: dict[str, Any], mode: str = "weight_only") -> Any:
    mapping = octavo.QConfigMapping()
    for name, precision in rules.items():
        mapping = mapping.set_module_name(name, precision)
    return octavo.quantize(
        model, calibration=[TOKENS], mode=mode, qconfig=mapping, progress=False, target="x86"
    )


def rounded(weight: Tensor) -> Tensor:
    """To int8 with a scale for each row."""
    step = weight.detach().abs().amax(1, keepdim=True) / 127
    return (weight.detach() / step).round().clamp(-127, 127) * step


def sqnr(found: Tensor, expected: Tensor) -> float:
    return float(20 * torch.log10(expected.norm() / (found - expected).norm()))


@pytest.mark.parametrize("in_float", ["emb", "head"])
@pytest.mark.parametrize("runtime", ["reference", "torch", "onnxruntime", "openvino"])
def test_what_stays_float_computes_with_the_floats(
    model: LM, in_float: str, runtime: str, tmp_path: Path
) -> None:
    if runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
    q = quantized(model, {in_float: None, "l": None})
    w, r = model.emb.weight.detach(), rounded(model.emb.weight)
    table, head = (w, r) if in_float == "emb" else (r, w)
    expected = F.linear(model.l(F.embedding(TOKENS, table)), head).detach()
    q.save(tmp_path / "model.octavo")
    for one in (q.lower(runtime), octavo.load(tmp_path / "model.octavo", runtime)):
        assert sqnr(one(TOKENS), expected) > 75
    assert q.plan.tensors[in_float].runs == "float"
    assert f", and kept as floats for {in_float}" in str(q.plan.tensors["head.weight"].reason)
    assert torch.equal(q.graph.constants["head.weight_float"], w)
    assert q.graph.constants["head.weight"].dtype == torch.int8


def test_the_summary_counts_both(model: LM) -> None:
    both = quantized(model, {}).summary().size_mb
    one = quantized(model, {"head": None}).summary().size_mb
    assert one - both == pytest.approx(100 * 32 * 4 / 1e6)


def test_what_is_bfloat16_is_a_rounding_of_the_floats(model: LM) -> None:
    q = quantized(model, {"head": torch.bfloat16, "l": None}).lower("reference")
    hidden = model.l(F.embedding(TOKENS, rounded(model.emb.weight))).bfloat16()
    expected = F.linear(hidden, model.emb.weight.bfloat16()).float().detach()
    assert sqnr(q(TOKENS), expected) > 60


@pytest.mark.parametrize("name", ["emb", "head"])
def test_rules_for_different_integers_are_an_error(model: LM, name: str) -> None:
    with pytest.raises(PlanError, match=r"the weight 'head\.weight', .*'emb' int.*'head' int"):
        quantized(model, {name: INT4})
    q = quantized(model, {"emb": INT4, "head": INT4})
    assert q.plan.tensors["head.weight"].spec.scheme.integers.bits == 4


def test_both_are_the_same_integers_by_default(model: LM) -> None:
    for mode in ("static", "dynamic", "weight_only"):
        q = quantized(model, {}, mode)
        assert "head.weight_float" not in q.graph.constants
        with torch.no_grad():
            assert sqnr(q(TOKENS), model(TOKENS)) > 30
    avx2 = octavo.plan(octavo.capture(model, TOKENS), target="x86-avx2", mode="static")
    spec = avx2.tensors["head.weight"].spec
    assert spec is not None
    assert type(spec.observer).__name__ == "PairSum"  # of the head, whose kernel sums pairs


class Shared(nn.Module):
    """A module that is called twice, and a weight whose floats are read by an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(self.a(self.a(x)))
        return y, x + self.a.weight


def test_a_weight_that_leaves_its_layer_stays_float_there() -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(32, 32)
    q = octavo.quantize(model, x, mode="weight_only", progress=False)
    r = rounded(model.a.weight)
    once = F.linear(F.linear(x, r, model.a.bias), r, model.a.bias)
    expected = F.linear(once, rounded(model.b.weight), model.b.bias).detach()
    found, leaving = q.lower("reference")(x)
    assert sqnr(found, expected) > 75
    assert torch.equal(leaving, x + model.a.weight.detach())


class Autoencoder(nn.Module):
    """A transposed convolution with the weight of a convolution: channels are on two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(self.encode(x), self.encode.weight)


def test_scales_of_two_axes_are_one_scale() -> None:
    torch.manual_seed(0)
    model, x = Autoencoder().eval(), torch.randn(4, 3, 8, 8)
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target(), progress=False)
    spec = q.plan.tensors["encode.weight"].spec
    assert spec.scheme.channel_axis is None
    with torch.no_grad():
        assert sqnr(q(x), model(x)) > 30


class TiedByTranspose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.a(x)), self.a.weight.T)


def test_weights_tied_by_a_transpose_are_two() -> None:
    torch.manual_seed(0)
    model, x = TiedByTranspose().eval(), torch.randn(8, 32)
    q = octavo.quantize(model, x, mode="weight_only", progress=False).lower("reference")
    w = model.a.weight
    expected = F.linear(torch.relu(F.linear(x, rounded(w))), rounded(w.T.contiguous())).detach()
    assert sqnr(q(x), expected) > 75


def test_training_trains_what_is_deployed(model: LM) -> None:
    mapping = octavo.QConfigMapping().set_module_name("head", None)
    trained = octavo.prepare_qat(model, TOKENS, qconfig=mapping, target="x86")
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for _ in range(3):
        loss = F.cross_entropy(trained(TOKENS).flatten(0, 1), TOKENS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained.eval()
    with torch.no_grad():
        expected = trained(TOKENS)
    q = octavo.convert(trained)
    assert q.plan.tensors["head"].runs == "float"
    assert sqnr(q.lower("reference")(TOKENS), expected) > 60
    # One parameter: the head's floats are what the table's integers were rounded from.
    w = q.graph.constants["head.weight_float"]
    steps = q.graph.constants["head.weight_scale"]
    integers = (w / steps).round().clamp(-127, 127)
    assert torch.equal(integers.to(torch.int8), q.graph.constants["head.weight"])
