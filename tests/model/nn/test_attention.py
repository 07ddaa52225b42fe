"""`octavo.nn.MultiheadAttention`: against torch's own, with every argument."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import ArtifactError, InputError
from octavo.flow.modules import quantize_modules
from octavo.flow.settings import Settings

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without biases": {"bias": False, "batch_first": True},
    "other sizes": {"kdim": 24, "vdim": 20},
    "extra key and value": {"add_bias_kv": True, "add_zero_attn": True},
}


def exact_twin(layer: nn.Module) -> nn.Module:
    """The quantized form whose weights are so fine that only its algebra differs from torch's."""
    scheme = octavo.Scheme("int16", symmetric=True, channel_axis=0)
    qconfig = octavo.QConfig(None, octavo.QSpec(scheme, octavo.MinMax()))
    return octavo.nn.from_float(layer, qconfig)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("masked", ["nothing", "padding", "causal", "both", "by head"])
def test_it_computes_what_torchs_does(name: str, masked: str) -> None:
    torch.manual_seed(0)
    settings = KINDS[name]
    layer = nn.MultiheadAttention(16, 4, **settings).eval()
    q = exact_twin(layer)
    batch, targets, sources = 2, 5, 7
    query = torch.randn(targets, batch, 16)
    key = torch.randn(sources, batch, settings.get("kdim", 16))
    value = torch.randn(sources, batch, settings.get("vdim", 16))
    if settings.get("batch_first"):
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    causal = torch.ones(targets, sources, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    masks: dict[str, dict[str, Tensor]] = {
        "nothing": {},
        "padding": {"key_padding_mask": padding},
        "causal": {"attn_mask": causal},
        "both": {"attn_mask": causal.float() * -3.0, "key_padding_mask": padding},
        "by head": {"attn_mask": torch.randn(batch * 4, targets, sources)},
    }
    for extra in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        with torch.no_grad():
            exact, weights = layer(query, key, value, **masks[masked], **extra)
        ours, own = q(query, key, value, **masks[masked], **extra)
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
        if weights is None:
            assert own is None
        else:
            torch.testing.assert_close(own, weights, rtol=1e-3, atol=1e-3)


def test_without_a_batch() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.randn(5, 16)
    with torch.no_grad():
        exact, weights = layer(x, x, x)
    ours, own = exact_twin(layer)(x, x, x)
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own, weights, rtol=1e-3, atol=1e-3)
    padding = torch.tensor([False, False, True, False, True])
    with torch.no_grad():
        exact = layer(x, x, x, key_padding_mask=padding)[0]
    ours = exact_twin(layer)(x, x, x, key_padding_mask=padding)[0]
    torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_a_transformer_has_integers_in_all_projections(mode: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    q = quantize_modules(model, Settings(mode=mode))
    floats = [name for name, p in q.named_parameters() if p.dim() > 1]
    assert floats == []
    x = torch.randn(2, 7, 32)
    padding = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    with torch.no_grad():
        exact, ours = model(x), q(x)
        assert float((exact - ours).norm() / exact.norm()) < 0.02
        seen = ~padding
        exact, ours = (m(x, src_key_padding_mask=padding)[seen] for m in (model, q))
        assert float((exact - ours).norm() / exact.norm()) < 0.02
    assert q(x[0]).shape == (7, 32)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), 1)
    decoder.eval()
    q = quantize_modules(decoder, Settings(mode=mode))
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    with torch.no_grad():
        exact, ours = (m(x, x, tgt_mask=causal, tgt_is_causal=True) for m in (decoder, q))
    assert float((exact - ours).norm() / exact.norm()) < 0.03


def test_described_copied_and_loaded() -> None:
    layer = nn.MultiheadAttention(16, 4, add_bias_kv=True).bfloat16()
    q = octavo.nn.from_float(layer, octavo.weight_only_qconfig(4))
    x = torch.randn(5, 2, 16).bfloat16()
    result, weights = q(x, x, x)
    assert (result.dtype, weights.dtype) == (torch.bfloat16, torch.bfloat16)
    described = json.loads(json.dumps(q.describe()))
    again = octavo.nn.from_description(described, q.tensors())
    assert torch.equal(again(x, x, x)[0], result)
    assert torch.equal(copy.deepcopy(q)(x, x, x)[0], result)
    other = octavo.nn.from_float(
        nn.MultiheadAttention(16, 4, add_bias_kv=True).bfloat16(), octavo.weight_only_qconfig(4)
    )
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(x, x, x)[0], result)
    described["settings"]["num_heads"] = 3
    with pytest.raises(ArtifactError, match="do not fit 16 channels in 3 heads"):
        octavo.nn.from_description(described, q.state_dict())
    del described["parts"]["v_proj"]
    with pytest.raises(ArtifactError, match="has the parts q_proj, k_proj"):
        octavo.nn.from_description(described, q.state_dict())


def test_what_cannot_be() -> None:
    q = octavo.nn.from_float(nn.MultiheadAttention(16, 4), octavo.dynamic_qconfig())
    x = torch.randn(5, 2, 16)
    with pytest.raises(InputError, match="give the mask too"):
        q(x, x, x, is_causal=True)
    with pytest.raises(InputError, match="no nested tensors"):
        q(*[torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(2, 16)])] * 3)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"key_padding_mask": torch.zeros(7, 2)}, r"is float32\[7, 2\]; .* of shape \[2, 7\]"),
        ({"key_padding_mask": torch.zeros(7)}, r"is float32\[7\]; .* of shape \[2, 7\]"),
        ({"attn_mask": torch.zeros(7, 5)}, r"of shape \[5, 7\] or \[8, 5, 7\]"),
        ({"attn_mask": torch.zeros(4, 5, 7)}, r"is float32\[4, 5, 7\]"),
        ({"attn_mask": torch.zeros(5, 7, dtype=torch.uint8)}, "is uint8.*give booleans or floats"),
    ],
)
def test_masks_that_torch_refuses(masks: dict[str, Tensor], message: str) -> None:
    layer, x = nn.MultiheadAttention(16, 4), torch.randn(7, 2, 16)
    q = octavo.nn.from_float(layer, octavo.dynamic_qconfig())
    with pytest.raises((AssertionError, RuntimeError)):
        layer(x[:5], x, x, **masks)
    with pytest.raises(InputError, match=message):
        q(x[:5], x, x, **masks)


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_autocast_changes_nothing(mode: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(32, 4).eval(), torch.randn(5, 2, 32)
    module = quantize_modules(layer, Settings(mode=mode))
    graph = octavo.quantize(layer, (x, x, x), mode=mode, progress=False)
    for quantized in (module, graph):
        exact = quantized(x, x, x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantized(x, x, x)[0], exact)
