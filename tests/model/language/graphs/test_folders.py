"""Graphs with a cache, run by ONNX Runtime and OpenVINO, and by their genai packages if these are
installed; the right tokens are those of the model itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_tokenizers
import torch
from language_models import language_model
from small_transformers import built
from torch import Tensor

import octavo
from octavo.errors import ExportError, InputError
from octavo.model.language.graphs import folders
from octavo.model.language.graphs.decoder import DecoderParts

pytest.importorskip("transformers")

FORMS = {
    "int8": octavo.weight_only_qconfig(),
    "int4": octavo.weight_only_qconfig(4, group_size=32),
    "int4, affine": octavo.weight_only_qconfig(4, group_size=32, symmetric=False),
}
FORMATS = {"onnxruntime-genai": "onnxruntime", "openvino-genai": "openvino"}
STEPS = 20


def quantized(model: Any, qconfig: Any = FORMS["int4"]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", octavo.OctavoWarning)
        return octavo.quantize(model, mode="weight_only", qconfig=qconfig, progress=False)


def stepping(format: str, folder: Path, model: Any) -> Callable[[Tensor, int], Tensor]:
    """The logits of new tokens behind so many, by plain runtimes."""
    pytest.importorskip(FORMATS[format])
    if format == "openvino-genai":
        return folders._steps_of_openvino(folder)
    return folders._steps_of_onnxruntime(folder, DecoderParts.of(model))


def assert_writes_the_same(step: Callable[[Tensor, int], Tensor], model: Any) -> None:
    """Greedily, each from its own tokens: every token is the model's, and logits are close."""
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (1, 5))
    length = ids.shape[1]
    how = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
        wanted = model(whole).logits
    found, tokens = [], ids
    for _ in range(STEPS):
        new = tokens[:, -1:] if found else tokens
        logits = step(new, tokens.shape[1] - new.shape[1])
        found.append(logits)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert tokens.shape[1] == length + STEPS
    assert torch.equal(tokens, whole)
    logits = torch.cat(found, dim=1)
    right = wanted[:, : logits.shape[1]]
    assert (logits - right).norm() < 1e-3 * right.norm()


@pytest.mark.parametrize(
    ("form", "tied"),
    [
        pytest.param(form, tied, marks=[] if (form, tied) == ("int4", True) else pytest.mark.sweep)
        for form in FORMS
        for tied in (False, True)
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_writes_what_the_model_writes(
    format: str, form: str, tied: bool, tmp_path: Path
) -> None:
    pytest.importorskip(FORMATS[format])
    q = quantized(small_tokenizers.llama(tie_word_embeddings=tied), FORMS[form])
    assert octavo.write_checkpoint(q, tmp_path / "out", format=format) == tmp_path / "out"
    assert_writes_the_same(stepping(format, tmp_path / "out", q), q)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["qwen 2", "qwen 3", "mistral"])
@pytest.mark.parametrize("format", FORMATS)
def test_decoders_like_llama_are_written(format: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip(FORMATS[format])
    q = quantized(language_model(name))
    octavo.write_checkpoint(q, tmp_path / "out", format=format)
    assert_writes_the_same(stepping(format, tmp_path / "out", q), q)


@pytest.mark.sweep
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
@pytest.mark.parametrize("format", FORMATS)
def test_positions_of_other_kinds(format: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(FORMATS[format])
    scaling = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64} if kind != "linear" else {}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    q = quantized(small_tokenizers.llama(rope_parameters=scaling))
    octavo.write_checkpoint(q, tmp_path / "out", format=format)
    assert_writes_the_same(stepping(format, tmp_path / "out", q), q)


@pytest.mark.sweep
@pytest.mark.parametrize("format", FORMATS)
def test_layers_with_biases_and_in_float(format: str, tmp_path: Path) -> None:
    pytest.importorskip(FORMATS[format])
    model = small_tokenizers.llama(attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    rules = octavo.QConfigMapping().set_global(FORMS["int4"])
    for float_one in ("lm_head", "model.embed_tokens", "model.layers.0.self_attn.k_proj"):
        rules.set_module_name(float_one, None)
    q = quantized(model, rules)
    octavo.write_checkpoint(q, tmp_path / "out", format=format)
    assert_writes_the_same(stepping(format, tmp_path / "out", q), q)


@pytest.mark.sweep
@pytest.mark.parametrize("format", FORMATS)
def test_other_models_are_one_clear_error(format: str, tmp_path: Path) -> None:
    pytest.importorskip(FORMATS[format])
    for name, said in (
        ("gpt 2", "transformer"),
        ("mixtral", "mlp"),
        ("phi 3", "attn_dropout"),
    ):
        with pytest.raises(ExportError, match=said):
            octavo.write_checkpoint(quantized(language_model(name)), tmp_path / "o", format=format)
    with pytest.raises(InputError, match="quantized"):
        octavo.write_checkpoint(small_tokenizers.llama(), tmp_path / "o", format=format)
    dynamic = octavo.quantize(small_tokenizers.llama(), mode="dynamic", progress=False)
    with pytest.raises(ExportError, match="weight-only"):
        octavo.write_checkpoint(dynamic, tmp_path / "o", format=format)
    assert not (tmp_path / "o").exists()


@pytest.mark.sweep
@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_that_is_not_the_model_is_not_written(format: str, tmp_path: Path) -> None:
    """Granite multiplies what the modules do not show."""
    pytest.importorskip(FORMATS[format])
    granite = built(
        "GraniteForCausalLM",
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
    )
    with pytest.raises(ExportError, match="something else"):
        octavo.write_checkpoint(quantized(granite), tmp_path / "o", format=format)
    assert not (tmp_path / "o").exists()


def test_groups_without_blocks_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    q = quantized(small_tokenizers.llama(), octavo.weight_only_qconfig(4, group_size=8))
    with pytest.raises(ExportError, match="groups of 8"):
        octavo.write_checkpoint(q, tmp_path / "o", format="onnxruntime-genai")


def test_what_onnxruntime_genai_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = small_tokenizers.llama()
    model.generation_config.eos_token_id = [3, 0]
    octavo.write_checkpoint(quantized(model), tmp_path / "out", format="onnxruntime-genai")
    found = json.loads((tmp_path / "out/genai_config.json").read_text())["model"]
    assert (found["context_length"], found["vocab_size"], found["eos_token_id"]) == (
        256,
        small_tokenizers.VOCABULARY,
        [3, 0],
    )
    decoder = found["decoder"]
    names = ("head_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    assert [decoder[name] for name in names] == [16, 4, 2, 2]
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files >= {"model.onnx", "model.onnx.data", "config.json", "generation_config.json"}
    assert not any(name.startswith((".", "floats")) for name in files)


PROMPTS = ["The for statement is used", "A class definition"]


def written(q: Any, tokenizer: Any, prompt: str, count: int) -> list[int]:
    """What the model itself writes."""
    given = tokenizer(prompt, return_tensors="pt")
    how = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    ids = given["input_ids"]
    whole = q.generate(ids, attention_mask=torch.ones_like(ids), **how)
    tokens: list[int] = whole[0, ids.shape[1] :].tolist()
    return tokens


def sliding() -> Any:
    """Of four layers two see 6 tokens."""
    sizes = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 6}
    return small_tokenizers.llama("Qwen2", max_window_layers=2, **sizes)


@pytest.mark.sweep
@pytest.mark.parametrize("model", [small_tokenizers.llama, sliding])
def test_openvino_genai_writes_it(model: Callable[[], Any], tmp_path: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    pytest.importorskip("openvino_tokenizers")
    q, tokenizer = quantized(model()), small_tokenizers.tokenizer()
    octavo.write_checkpoint(q, tmp_path / "out", format="openvino-genai", tokenizer=tokenizer)
    for backend in ("PA", "SDPA"):
        settings = {**folders._EXACT, "ATTENTION_BACKEND": backend}
        pipeline = genai.LLMPipeline(str(tmp_path / "out"), "CPU", **settings)
        for prompt in PROMPTS:
            wanted = tokenizer.decode(written(q, tokenizer, prompt, 16), skip_special_tokens=True)
            how = {"max_new_tokens": 16, "ignore_eos": True, "apply_chat_template": False}
            assert str(pipeline.generate(prompt, do_sample=False, **how)) == wanted


@pytest.mark.sweep
def test_onnxruntime_genai_writes_it(tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    from octavo.model.language.graphs.onnx_graph import in_floats

    q, tokenizer = quantized(small_tokenizers.llama()), small_tokenizers.tokenizer()
    out = tmp_path / "out"
    octavo.write_checkpoint(q, out, format="onnxruntime-genai", tokenizer=tokenizer)
    with in_floats(out) as path:
        (out / "model.onnx").write_bytes(path.read_bytes())
    model = genai.Model(str(out))
    words = genai.Tokenizer(model)
    for prompt in PROMPTS:
        ids = words.encode(prompt)
        assert ids.tolist() == tokenizer(prompt)["input_ids"]
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=len(ids) + 16, do_sample=False)
        generator = genai.Generator(model, settings)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        tokens = generator.get_sequence(0).tolist()[len(ids) :]
        assert tokens == written(q, tokenizer, prompt, 16)
