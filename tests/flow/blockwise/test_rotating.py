"""`octavo.Rotation` on models of transformers: nothing changes in float, and large channels end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_models import language_model, rounded_by, texts
from torch import Tensor, nn

import octavo
from octavo.errors import CalibrationError, InputError
from octavo.flow.blockwise.rotating import rotate
from octavo.flow.blockwise.rounding import require_no_data
from octavo.flow.running import Calls
from octavo.graph.copying import copied
from octavo.numerics.sqnr import sqnr_db

FOUR = octavo.weight_only_qconfig(4, group_size=32)


def uneven(name: str) -> Any:
    """A model with weights in its norms, and a few hidden states that are large."""
    model = language_model(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path and parameter.dim() == 1:
                parameter.add_(torch.rand(len(parameter)))
        table = model.get_input_embeddings().weight
        table[:, :3] *= 20
    return model


def decibels(exact: Tensor, found: Tensor) -> float:
    noise = float((exact - found).double().square().sum())
    return sqnr_db(float(exact.double().square().sum()), noise)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama, tied",
        "qwen 2",
        "qwen 3",
        "mistral",
        "phi 3",
        "gemma",
        "mixtral",
        "qwen 3, experts",
    ],
)
def test_nothing_changes_in_float(name: str) -> None:
    model, (batch, other) = uneven(name), texts(2)
    turned = copied(model)
    notes = rotate(turned, [octavo.Rotation()], Calls.of(turned, None, [batch], None, None))
    with torch.no_grad():
        assert decibels(model(**other).logits, turned(**other).logits) > 100
    tied = name in ("llama, tied", "gemma")
    assert [("has a weight of its own now" in note) for note in notes] == [True] * tied
    assert (turned.lm_head.weight is turned.get_input_embeddings().weight) is False
    # What was three large channels is spread over all of them.
    before, after = (net.get_input_embeddings().weight for net in (model, turned))
    sizes = [
        float(t.square().mean(0).sqrt().max() / t.square().mean().sqrt()) for t in (before, after)
    ]
    assert sizes[0] > 4
    assert sizes[1] < 2
    # Values of heads are turned too: a layer with a scale of its own for each column would see it.
    block = next(path for path, _ in model.named_modules() if path.endswith("layers.0.self_attn"))
    own, new = (net.get_submodule(f"{block}.o_proj").weight for net in (model, turned))
    assert not torch.allclose(own.norm(dim=0), new.norm(dim=0), rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt 2", "for models with RMS norms, and this one has a LayerNorm with weight and bias"),
        ("opt", "for models with RMS norms"),
        ("gemma 3", "a rotation changes what this Gemma3ForCausalLM returns"),
        ("t5", "has 2 lists of blocks"),
    ],
)
def test_models_that_cannot_be_turned(name: str, why: str) -> None:
    batch = texts(1)[0]
    if name == "t5":
        batch["decoder_input_ids"] = batch["input_ids"]
    with pytest.raises(InputError, match=why):
        quantized(uneven(name), octavo.Rotation(), data=[batch])


def quantized(model: nn.Module, *methods: octavo.WeightMethod, **options: Any) -> Any:
    return rounded_by(model, *methods, calibration=options.pop("data", texts(2)), **options)


def test_a_model_with_large_hidden_states_is_nearer_by_it() -> None:
    model, (batch, _) = uneven("llama, tied"), texts(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rules = octavo.QConfigMapping().set_global(octavo.dynamic_qconfig())
    rules.set_object_type("embedding", None).set_module_name("lm_head", None)
    found = []
    for methods in ((), (octavo.Rotation(),), (octavo.Rotation(), octavo.SmoothQuant())):
        q = quantized(model, *methods, mode="dynamic", qconfig=rules)
        with torch.no_grad():
            found.append(decibels(model(**batch).logits, q(**batch).logits))
    assert found[1] > found[0] + 1.5
    assert found[2] > found[0] + 1
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_other_methods_follow_it() -> None:
    model, (batch, _) = uneven("llama"), texts(2)
    found = []
    for methods in ((), (octavo.Rotation(), octavo.AWQ(), octavo.Clip(), octavo.GPTQ())):
        q = quantized(model, *methods)
        with torch.no_grad():
            found.append(decibels(model(**batch).logits, q(**batch).logits))
            cached, plain = (
                q.generate(batch["input_ids"], max_new_tokens=4, do_sample=False, use_cache=cache)
                for cache in (True, False)
            )
        assert torch.equal(cached, plain)
    assert found[1] > found[0] + 1


def test_what_it_needs() -> None:
    model = language_model("llama")
    with pytest.raises(CalibrationError, match="there is no data"):  # as quantize_folder asks
        require_no_data([], [octavo.Rotation()])
    with pytest.raises(InputError, match="'rotation' behind other methods: give it first"):
        quantized(model, octavo.Clip(), octavo.Rotation())
    with pytest.raises(CalibrationError, match="'rotation' is tried on a batch"):
        quantized(model, octavo.Rotation(), data=None)
    with pytest.warns(octavo.OctavoWarning, match=r"'lm_head' has a weight of its own now"):
        octavo.quantize(
            language_model("llama, tied"),
            calibration=texts(2),
            scope="modules",
            mode="weight_only",
            qconfig=FOUR,
            weights=[octavo.Rotation()],
            progress=False,
        )
