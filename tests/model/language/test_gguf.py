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
from octavo.errors import InputError

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
