"""FX mode: mappings, examples or none, and models that are left as they were."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.ao.quantization as theirs
from compat.networks import Net, Trained, decibels
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx as their_fx

import octavo
import octavo.compat.quantization as ours
from octavo.compat import quantize_fx
from octavo.errors import OctavoWarning


def test_static_is_as_right_as_torchs(digits: Trained) -> None:
    x = digits.images
    results = []
    for names, fx in ((ours, quantize_fx), (theirs, their_fx)):
        mapping = names.QConfigMapping().set_global(names.get_default_qconfig("x86"))
        ready = fx.prepare_fx(digits.model, mapping, (x,))
        for images, _ in list(digits.train)[:3]:
            ready(images)
        results.append(fx.convert_fx(ready)(x))
    exact = digits.float_model(x)
    assert decibels(exact, results[0]) > decibels(exact, results[1]) - 1


def test_without_calibration_it_takes_a_state_dict(digits: Trained) -> None:
    x, qconfigs = digits.images, {"": ours.get_default_qconfig("x86")}
    ready = quantize_fx.prepare_fx(digits.float_model, qconfigs)
    ready(x)
    q = quantize_fx.convert_fx(ready)
    assert isinstance(digits.float_model.conv1, nn.Conv2d)
    assert str(q.conv1).startswith("QuantizedConvReLU2d(1, 8")
    other = quantize_fx.convert_fx(quantize_fx.prepare_fx(Net(), qconfigs, x[:1]))
    with pytest.raises(octavo.OctavoError, match="the scale of 'x' is not known"):
        other(x)
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(x), q(x))


def test_rules_of_every_kind(digits: Trained) -> None:
    x, qconfig = digits.images, ours.get_default_qconfig("x86")
    mapping = {
        "": qconfig,
        "object_type": [(nn.MaxPool2d, None)],
        "module_name_regex": [("fc[1]", None)],
        "module_name": [("conv2", None), ("fc2", ours.per_channel_dynamic_qconfig)],
    }
    ready = quantize_fx.prepare_fx(digits.float_model, mapping, x)
    ready(x)
    q = quantize_fx.convert_fx(ready)
    kinds = [str(getattr(q, name)).split("(")[0] for name in ("conv1", "conv2", "fc1", "fc2")]
    assert kinds == ["QuantizedConvReLU2d", "Conv2d", "Linear", "DynamicQuantizedLinear"]
    assert isinstance(q.bn2, nn.Identity)  # folded into conv2
    assert decibels(digits.float_model(x), q(x)) > 25


class Words(nn.Module):
    """A table, attention, norms: some of it int8, some float, some tables."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.table(tokens)))
        return scores


def test_a_mixed_model_and_its_state_dict() -> None:
    tokens = torch.randint(0, 20, (3, 6))
    mapping = ours.get_default_qconfig_mapping("x86").set_object_type(
        nn.Embedding, ours.float_qparams_weight_only_qconfig
    )
    model = Words().eval()
    ready = quantize_fx.prepare_fx(model, mapping, tokens)
    ready(tokens)
    q = quantize_fx.convert_fx(ready)
    assert decibels(model(tokens), q(tokens)) > 30
    assert str(q.table) == "WeightOnlyEmbedding(20, 16)"
    assert isinstance(q.encoder.norm1, nn.LayerNorm)
    other = quantize_fx.convert_fx(quantize_fx.prepare_fx(Words(), mapping, tokens))
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(tokens), q(tokens))


def test_a_model_of_which_nothing_is_quantized_stays_float(digits: Trained) -> None:
    mapping = {"": None, "module_name": [("relu1", ours.get_default_qconfig("x86"))]}
    with pytest.warns(OctavoWarning, match="stays float: nothing would be quantized"):
        q = quantize_fx.convert_fx(
            quantize_fx.prepare_fx(digits.float_model, mapping, digits.images)
        )
    assert type(q) is Net
    assert torch.equal(q(digits.images), digits.float_model(digits.images))


def test_dynamic_needs_neither_example_nor_call(digits: Trained) -> None:
    mapping = {"": None, "object_type": [(nn.Linear, ours.default_dynamic_qconfig)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = quantize_fx.convert_fx(quantize_fx.prepare_fx(digits.float_model, mapping))
    assert str(q.fc1) == "DynamicQuantizedLinear(in_features=144, out_features=128, bias=True)"
    assert isinstance(q.conv1, nn.Conv2d)
    assert decibels(digits.float_model(digits.images), q(digits.images)) > 30


def test_fuse_fx_folds_batch_norms(digits: Trained) -> None:
    fused = quantize_fx.fuse_fx(digits.float_model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(
        fused(digits.images), digits.float_model(digits.images), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(octavo.OctavoError, match=r"call model.eval\(\) first"):
        quantize_fx.fuse_fx(Net().train())


def test_errors_name_the_way_out(digits: Trained) -> None:
    qconfig = ours.get_default_qconfig("x86")
    with pytest.raises(
        octavo.OctavoError, match="no module is called 'conv9', as a rule has it; did you mean"
    ):
        quantize_fx.prepare_fx(digits.model, {"module_name": [("conv9", qconfig)]}, digits.images)
    with pytest.raises(octavo.OctavoError, match="argument backend_config"):
        quantize_fx.prepare_fx(digits.model, {"": qconfig}, digits.images, backend_config={})
    with pytest.raises(octavo.OctavoError, match="was not prepared"):
        quantize_fx.convert_fx(digits.model)
