"""Language models out of GGUF files that the package ``gguf`` writes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import transformers

import octavo
from octavo.errors import ExportError, InputError

gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of queries and keys as llama.cpp has them: the halves of each head, row by row."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def written(path: Path) -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(96)
    words = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 126))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * 96)
    writer.add_token_types([3] * 3 + [1] * 93)
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    plain = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", plain["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", plain["model.norm.weight"])
    writer.add_tensor("output.weight", plain["lm_head.weight"])
    for block in (0, 1):
        for name, other in NAMES.items():
            weight = plain[f"model.layers.{block}.{name}.weight"]
            if other in ("attn_q", "attn_k"):
                weight = interleaved(weight, 4 if other == "attn_q" else 2)
            writer.add_tensor(f"blk.{block}.{other}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_file_is_the_model_that_was_written(tmp_path: Path) -> None:
    from octavo.model.language.gguf import read_gguf

    exact = written(tmp_path / "model.gguf")
    model, tokenizer = read_gguf(tmp_path / "model.gguf")
    ids = torch.randint(3, 96, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, exact(ids).logits)
    assert tokenizer("!").input_ids[-1] == 3
    model.save_pretrained(tmp_path / "folder")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "folder")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    q = octavo.quantize(model, mode="weight_only")
    assert isinstance(q.model.layers[0].mlp.up_proj, octavo.nn.Linear)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_file_that_is_cut_off(kept: float, tmp_path: Path) -> None:
    from octavo.model.language.gguf import read_gguf

    path = tmp_path / "model.gguf"
    written(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(InputError, match=r"model\.gguf is no GGUF file"):
        read_gguf(path)


def test_a_file_without_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers fills it with random numbers."""
    from octavo.model.language.gguf import read_gguf

    add = gguf.GGUFWriter.add_tensor

    def some(writer: Any, name: str, *args: Any) -> None:
        if name != "blk.1.ffn_up.weight":
            add(writer, name, *args)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", some)
    written(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        read_gguf(tmp_path / "model.gguf")


def test_numbers_that_the_file_cannot_hold(tmp_path: Path) -> None:
    """A list of 2^60 bytes, and 2^30 blocks: nothing is made of them."""
    from octavo.model.language.gguf import read_gguf

    path = tmp_path / "model.gguf"
    path.write_bytes(struct.pack("<4sIQQQcIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 0, 2**60))
    with pytest.raises(InputError, match="is damaged: it is cut off"):
        read_gguf(path)
    written(path)
    key = b"llama.block_count" + struct.pack("<I", 4)
    content = path.read_bytes()
    assert content.count(key) == 1
    path.write_bytes(content.replace(key + struct.pack("<I", 2), key + struct.pack("<I", 2**30)))
    with pytest.raises(InputError, match=f"holds 21 tensors for {2**30} blocks"):
        read_gguf(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    from octavo.model.language.gguf import read_gguf

    with pytest.raises(InputError, match=r"nowhere\.gguf"):
        read_gguf(tmp_path / "nowhere.gguf")
    with pytest.raises(InputError, match="is no GGUF file"):
        read_gguf(Path(__file__))


FORMS = {
    "Q8_0": octavo.weight_only_qconfig(),
    "Q4_0": octavo.weight_only_qconfig(4, group_size=32),
    "Q4_1": octavo.weight_only_qconfig(4, group_size=32, symmetric=False),
}


def block_values(kind: str, data: np.ndarray[Any, Any]) -> list[float]:
    """The 32 values of a block, byte by byte as llama.cpp documents it."""
    d, *rest = np.frombuffer(data[: 4 if kind == "Q4_1" else 2].tobytes(), np.float16).tolist()
    stored = data[4 if kind == "Q4_1" else 2 :].tolist()
    if kind == "Q8_0":
        return [d * (byte - 256 if byte > 127 else byte) for byte in stored]
    values = [byte % 16 for byte in stored] + [byte // 16 for byte in stored]
    return [d * value + rest[0] if kind == "Q4_1" else d * (value - 8) for value in values]


@pytest.mark.parametrize("kind", FORMS)
def test_integers_are_written_as_they_are(kind: str, tmp_path: Path) -> None:
    from octavo.model.language.gguf import read_gguf, write_gguf

    source, out = tmp_path / "model.gguf", tmp_path / "out.gguf"
    written(source)
    model, _ = read_gguf(source)
    q = octavo.quantize(model, mode="weight_only", qconfig=FORMS[kind])
    for layer in q.modules():  # scales that float16 holds
        if isinstance(layer, octavo.nn.Linear | octavo.nn.Embedding):
            layer._buffers["weight_scale"] = layer.tensors()["weight_scale"].half().float()
    assert write_gguf(q, out, like=source) == out
    reader = gguf.GGUFReader(out)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name in ("blk.1.ffn_down.weight", "token_embd.weight", "output.weight"):
        assert stored[name].tensor_type.name == kind
    expected = q.model.layers[1].mlp.down_proj.dequantized()["weight"]
    size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
    rows = stored["blk.1.ffn_down.weight"].data.reshape(32, 2, size)
    values = [[value for block in row for value in block_values(kind, block)] for row in rows]
    torch.testing.assert_close(
        torch.tensor(values), expected, rtol=0, atol=1e-4 if kind == "Q4_1" else 0.0
    )
    again, tokenizer = read_gguf(out)
    assert tokenizer("!").input_ids[-1] == 3
    for path, layer in q.named_modules():
        if isinstance(layer, octavo.nn.Linear | octavo.nn.Embedding):
            weight = again.get_submodule(path).weight
            wanted = layer.dequantized()["weight"]
            # The least value of a block is float16 too.
            torch.testing.assert_close(
                weight, wanted, rtol=0, atol=2.0**-11 if kind == "Q4_1" else 1e-8
            )


def test_what_a_gguf_file_has_no_form_for(tmp_path: Path) -> None:
    from octavo.model.language.gguf import read_gguf, write_gguf

    source, out = tmp_path / "model.gguf", tmp_path / "out.gguf"
    written(source)
    model, _ = read_gguf(source)
    narrow = octavo.weight_only_qconfig(4, group_size=16)
    q = octavo.quantize(model, mode="weight_only", qconfig=narrow)
    with pytest.raises(ExportError, match=r"groups of 16"):
        write_gguf(q, out, like=source)
    dynamic = octavo.quantize(model, mode="dynamic")
    with pytest.raises(ExportError, match="dynamic"):
        write_gguf(dynamic, out, like=source)
    small = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 1})
    )
    q = octavo.quantize(small.eval(), mode="weight_only")
    with pytest.raises(InputError, match=r"blk\.1\."):
        write_gguf(q, out, like=source)
    with pytest.raises(InputError, match="no GGUF file"):
        write_gguf(q, out, like=Path(__file__))
    nameless = tmp_path / "nameless.gguf"  # the key has another name of the same length
    nameless.write_bytes(
        source.read_bytes().replace(b"general.architecture", b"general.architectura", 1)
    )
    with pytest.raises(InputError, match="architecture ''"):
        write_gguf(q, out, like=nameless)
    assert not out.exists()
