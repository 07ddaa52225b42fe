"""``from_pretrained(..., quantization_config=OctavoConfig(...))`` and ``save_pretrained``."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import built

import octavo
from octavo.errors import ArtifactError, PlanError

transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, dict[str, Any]] = {
    "weight_only": {},
    "4 bits": {"bits": 4, "group_size": 32},
    "dynamic": {"mode": "dynamic"},
}
IDS = torch.arange(12).reshape(2, 6)


def saved(folder: Path, tied: bool = False) -> Any:
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 1}
    model = built("LlamaForCausalLM", **sizes, tie_word_embeddings=tied)
    model.save_pretrained(folder)
    return model


def tokens(model: Any) -> torch.Tensor:
    mask = torch.ones_like(IDS)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    generated: torch.Tensor = model.generate(IDS, attention_mask=mask, **options)
    return generated


FRESH = """
import sys
sys.path.append(sys.argv[3])
import torch, torchvision_shim
from safetensors.torch import save_file
from transformers import LlamaForCausalLM
import octavo.flow.transformers
model = LlamaForCausalLM.from_pretrained(sys.argv[1])
ids = torch.arange(12).reshape(2, 6)
with torch.no_grad():
    save_file({"logits": model(ids).logits}, sys.argv[2])
"""


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_folder_is_the_same_model(
    options: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    from octavo.flow.transformers import OctavoConfig

    exact = saved(tmp_path / "float", tied)
    load = transformers.LlamaForCausalLM.from_pretrained
    q = load(tmp_path / "float", quantization_config=OctavoConfig(**options))
    layer = q.model.layers[0].mlp.up_proj
    assert isinstance(layer, octavo.nn.Linear)
    assert not isinstance(q.lm_head, octavo.nn.Linear)
    with torch.no_grad():
        difference = (q(IDS).logits - exact(IDS).logits).norm() / exact(IDS).logits.norm()
    assert 0 < difference < 0.2
    q.save_pretrained(tmp_path / "q")
    again = load(tmp_path / "q")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, q(IDS).logits)
    assert torch.equal(tokens(again), tokens(q))
    assert tokens(q).shape == (2, 9)
    assert sum(p.stat().st_size for p in (tmp_path / "q").glob("*.safetensors")) < sum(
        p.stat().st_size for p in (tmp_path / "float").glob("*.safetensors")
    )


def test_experts_become_integers_and_are_loaded_again(tmp_path: Path) -> None:
    from octavo.flow.transformers import OctavoConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 1}
    built("MixtralForCausalLM", **sizes, num_local_experts=4).save_pretrained(tmp_path / "float")
    load = transformers.MixtralForCausalLM.from_pretrained
    q = load(tmp_path / "float", quantization_config=OctavoConfig(bits=4, group_size=32))
    assert isinstance(q.model.layers[0].mlp.experts, octavo.nn.Experts)
    q.save_pretrained(tmp_path / "q")
    again = load(tmp_path / "q")
    assert isinstance(again.model.layers[0].mlp.experts, octavo.nn.Experts)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, q(IDS).logits)


def test_a_fresh_process_loads_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from octavo.flow.transformers import OctavoConfig

    saved(tmp_path / "float")
    load = transformers.LlamaForCausalLM.from_pretrained
    q = load(tmp_path / "float", quantization_config=OctavoConfig())
    q.save_pretrained(tmp_path / "q")
    tests = Path(__file__).parents[1]
    arguments = [str(tmp_path / "q"), str(tmp_path / "result"), str(tests)]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True, capture_output=True)
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "result")["logits"], q(IDS).logits)


def test_save_pretrained_of_what_quantize_returns(tmp_path: Path) -> None:
    exact = built("LlamaForCausalLM", tie_word_embeddings=True)
    q = octavo.quantize(exact, mode="weight_only")
    with torch.no_grad():
        logits = q(IDS).logits
    octavo.save(q, tmp_path / "q.octavo")
    filled = octavo.load(tmp_path / "q.octavo", into=copy.deepcopy(exact))
    for name, model in (("own", q), ("copied", copy.deepcopy(q)), ("filled", filled)):
        model.save_pretrained(tmp_path / name)
        again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / name)
        assert isinstance(again.model.layers[0].mlp.up_proj, octavo.nn.Linear)
        with torch.no_grad():
            assert torch.equal(again(IDS).logits, logits)
    assert not hasattr(exact.config, "quantization_config")
    exact.save_pretrained(tmp_path / "float")
    with torch.no_grad():
        again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "float")
        assert torch.equal(again(IDS).logits, exact(IDS).logits)


def test_save_pretrained_refuses_captured_parts(tmp_path: Path) -> None:
    ids = {"input_ids": IDS}
    q = octavo.quantize(built("LlamaForCausalLM"), ids, mode="dynamic", only=["lm_head"])
    with pytest.raises(octavo.OctavoError, match=r"'lm_head'.*octavo\.save"):
        q.save_pretrained(tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_transformers_refuses_integers_where_nobody_told_it_of_octavo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.quantizers import auto

    from octavo.flow.transformers import OctavoConfig

    saved(tmp_path / "float")
    load = transformers.LlamaForCausalLM.from_pretrained
    q = load(tmp_path / "float", quantization_config=OctavoConfig())
    q.save_pretrained(tmp_path / "q")
    octavo.quantize_folder(tmp_path / "float", tmp_path / "from-disk")
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "octavo")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "octavo")
    for folder in ("q", "from-disk"):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            load(tmp_path / folder)


def test_a_folder_with_integers_in_the_shape_of_floats_is_to_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "float")
    with monkeypatch.context() as patched:
        patched.setattr("octavo.model.language.shards.VERSION", 1)
        octavo.quantize_folder(tmp_path / "float", tmp_path / "q")
    with pytest.raises(ArtifactError, match=r"version 1 .* none below 2: write it anew"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "q")


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from octavo.flow.transformers import OctavoConfig

    saved(tmp_path / "float")
    load = transformers.LlamaForCausalLM.from_pretrained
    load(tmp_path / "float", quantization_config=OctavoConfig()).save_pretrained(tmp_path / "q")
    file = tmp_path / "q" / "config.json"
    config = json.loads(file.read_text())
    modules = config["quantization_config"]["modules"]
    modules["model.layers.9.mlp.up_proj"] = next(iter(modules.values()))
    file.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"model\.layers\.9\.mlp\.up_proj"):
        load(tmp_path / "q")


@pytest.mark.parametrize(
    "options", [{"mode": "static"}, {"mode": "dynamic", "bits": 4}, {"bit": 4}]
)
def test_what_needs_data_or_is_unknown_is_refused(options: dict[str, Any]) -> None:
    from octavo.flow.transformers import OctavoConfig

    with pytest.raises(PlanError):
        OctavoConfig(**options)
