"""The commands on language models: quantize a folder, write on, judge by a text, serve."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import octavo_command
from small_tokenizers import llama, saved, tokenizer

import octavo
from octavo.cli.sources.language_model import load_language_model
from octavo.errors import InputError
from octavo.measuring.text_quality import text_quality
from octavo.model.parts import parts_of

TEXT = "The assert statement is a convenient way to insert debugging assertions into a program. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "small")


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("cache", ["float", "int8"])
def test_generate_writes_on(folder: Path, cache: str) -> None:
    ids = tokenizer()("The set", return_tensors="pt").input_ids
    right = llama().generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    asked = ("generate", folder, "--prompt", "The set", "--max-new-tokens", "6")
    answer = octavo_command(*asked, "--kv-cache", cache)
    assert answer.code == 0, answer.err
    assert "6 tokens at" in answer.out
    assert "cache 0." in answer.out
    found = json.loads(octavo_command(*asked, "--kv-cache", cache, "--json").out)
    assert (found["tokens"], found["prompt_tokens"]) == (6, ids.shape[1])
    assert found["tokens_per_second"] > 0
    assert found["peak_mb"] > 50
    if cache == "float":
        assert found["text"] == tokenizer().decode(right)
        assert found["cache_bytes"] == 2 * 2 * 2 * 256 * 16 * 4  # layers, k and v, heads, tokens
    else:
        assert found["cache_bytes"] == 2 * 2 * 2 * 256 * (16 + 8)
    assert found["weight_bytes"] == sum(4 * p.numel() for p in llama().parameters()) + 2 * 4 * 8


def test_generate_draws_and_chats(folder: Path) -> None:
    asked = ("generate", folder, "--prompt", "Hello", "--max-new-tokens", "5", "--json")
    drawn = [
        json.loads(octavo_command(*asked, "--temperature", "0.9", "--seed", seed).out)["text"]
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    chat = json.loads(octavo_command(*asked, "--chat").out)
    assert chat["prompt_tokens"] == len(tokenizer()("user: Hello\nassistant:")["input_ids"])


def test_perplexity_of_a_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 4)
    ids = torch.tensor(tokenizer()(TEXT * 4)["input_ids"])
    right = octavo.perplexity(llama(), ids, window=32, stride=8)
    asked = ("perplexity", folder, "--text", tmp_path / "a.txt", "--window", "32", "--json")
    found = json.loads(octavo_command(*asked, "--stride", "8").out)
    assert found["perplexity"] == pytest.approx(right, rel=1e-5)
    assert found["tokens"] == len(ids) - 1
    assert found["divergence"] is None
    (tmp_path / "a.txt").write_text(TEXT * 20)  # longer than the model has positions for
    answer = octavo_command("perplexity", folder, "--text", tmp_path / "a.txt")
    assert answer.code == 1
    assert "positions for 256 tokens" in words(answer.err)
    assert "give --window 256" in words(answer.err)


def test_from_quantize_to_perplexity(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 4)
    out = tmp_path / "int4"
    quantize = ("quantize", f"hf:{folder}", "--mode", "weight_only", "-o", out, "--bits", "4")
    answer = octavo_command(*quantize, "--group-size", "32", "--rule", "self_attn=int8")
    assert answer.code == 0, answer.err
    config: Any = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "octavo"
    asked = ("perplexity", out, "--text", tmp_path / "a.txt", "--window", "32")
    found = json.loads(octavo_command(*asked, "--against", folder, "--json").out)
    ids = torch.tensor(tokenizer()(TEXT * 4)["input_ids"])
    exact = octavo.perplexity(llama(), ids, window=32)
    assert found["reference_perplexity"] == pytest.approx(exact, rel=1e-5)
    q = load_language_model(str(out)).model
    right = text_quality(q, ids, reference=llama(), window=32)
    for name in ("perplexity", "divergence", "agreement"):
        assert found[name] == pytest.approx(getattr(right, name), rel=1e-4)
    assert 0 < found["divergence"] < 1
    forms = {path: str(part.describe()) for path, part in parts_of(q).items()}
    assert len(forms) == 2 * 7 + 2  # layers, head and table
    for path, form in forms.items():
        assert ("int4" in form) == ("self_attn" not in path), (path, form)
    shown = words(octavo_command(*asked, "--against", folder).out)
    assert "same most likely token" in shown
    written = octavo_command("generate", out, "--prompt", "The set", "--max-new-tokens", "5")
    assert "5 tokens at" in written.out


@pytest.mark.filterwarnings("ignore")
def test_a_text_to_round_by(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 60)
    quantize = ("quantize", f"hf:{folder}", "--mode", "weight_only", "--bits", "4", "-o")
    by_text = (*quantize, tmp_path / "text", "--calibration", tmp_path / "a.txt", "--batches", "2")
    assert octavo_command(*quantize, tmp_path / "nearest").code == 0
    answer = octavo_command(*by_text)
    assert answer.code == 0, answer.err
    ids = torch.tensor(tokenizer()(TEXT * 60)["input_ids"])[:512]
    found, nearest = (
        text_quality(load_language_model(str(tmp_path / name)).model, ids, reference=llama())
        for name in ("text", "nearest")
    )
    assert found.divergence < 0.8 * nearest.divergence
    (tmp_path / "b.txt").write_text(TEXT)
    short = octavo_command(*quantize, tmp_path / "b", "--calibration", tmp_path / "b.txt")
    assert "at least 256" in words(short.err)
    small = saved(tmp_path / "small", llama(vocab_size=300))
    other = octavo_command(
        *("quantize", f"hf:{small}", "--mode", "weight_only", "-o", tmp_path / "c"),
        *("--calibration", tmp_path / "a.txt"),
    )
    assert "has a token 511, and the model has a table of 300" in words(other.err)
    assert not (tmp_path / "c").exists()


def test_other_models_than_causal_ones_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    config = transformers.T5Config(vocab_size=512, decoder_start_token_id=0, **sizes)
    folder = saved(tmp_path / "t5", transformers.T5ForConditionalGeneration(config))
    answer = octavo_command("generate", folder, "--prompt", "a")
    assert answer.code == 1
    assert "T5ForConditionalGeneration, which is no causal language model" in words(answer.err)


@pytest.mark.filterwarnings("ignore")
def test_rows_of_a_text_are_as_long_as_the_model_has_positions(tmp_path: Path) -> None:
    """A table of positions has no more, and a longer row would be an error of indices."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 512, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    folder = saved(tmp_path / "gpt", model)
    (tmp_path / "a.txt").write_text(TEXT * 60)
    answer = octavo_command(
        *("quantize", f"hf:{folder}", "--mode", "weight_only", "--batches", "2"),
        *("--calibration", tmp_path / "a.txt", "-o", tmp_path / "q"),
    )
    assert answer.code == 0, answer.err


@pytest.mark.filterwarnings("ignore:written in float")
@pytest.mark.parametrize("format", ["gptq", "awq"])
def test_folders_of_others(format: str, tmp_path: Path) -> None:
    four = octavo.weight_only_qconfig(4, group_size=32)
    q = octavo.quantize(llama(), mode="weight_only", qconfig=four, progress=False)
    octavo.write_checkpoint(q, tmp_path / "out", format=format, tokenizer=tokenizer())
    (tmp_path / "a.txt").write_text(TEXT * 4)
    found = json.loads(
        octavo_command("perplexity", tmp_path / "out", "--text", tmp_path / "a.txt", "--json").out
    )
    ids = torch.tensor(tokenizer()(TEXT * 4)["input_ids"])
    again = octavo.read_checkpoint(tmp_path / "out")
    assert found["perplexity"] == pytest.approx(octavo.perplexity(again, ids), rel=1e-4)
    written = octavo_command("generate", tmp_path / "out", "--prompt", "The set")
    assert written.code == 0, written.err


def test_a_gguf_file_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "model.gguf", tmp_path / "out"
    source.write_bytes(b"GGUF")
    monkeypatch.setattr(
        "octavo.cli.sources.language_model.read_quietly", lambda path: (llama(), tokenizer())
    )
    quantize = ("quantize", f"hf:{source}", "--mode", "weight_only", "-o", out)
    assert octavo_command(*quantize).code == 0
    shards = sorted(out.glob("*.safetensors"))
    dates = [shard.stat().st_mtime_ns for shard in shards[:-1]]
    shards[-1].unlink()
    (out / "config.json").unlink()
    answer = octavo_command(*quantize)
    assert answer.code == 0, answer.err
    assert [shard.stat().st_mtime_ns for shard in shards[:-1]] == dates
    os.utime(source, ns=(1, 1))  # another file
    shards[-1].unlink()
    (out / "config.json").unlink()
    assert "another model" in octavo_command(*quantize).err


def test_what_is_missing_or_does_not_fit(folder: Path, tmp_path: Path) -> None:
    def refused(*asked: str | Path) -> str:
        answer = octavo_command(*asked)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.startswith("octavo: ")
        return words(answer.err)

    say = ("--prompt", "a")
    assert "there is no folder nowhere" in refused("generate", "nowhere", *say)
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in refused("generate", tmp_path / "empty", *say)
    assert "--prompt is empty" in refused("generate", folder, "--prompt", "")
    many = ("--max-new-tokens", "256")
    assert "the model takes 256 in all" in refused("generate", folder, *say, *many)
    assert "temperature is -1.0" in refused("generate", folder, *say, "--temperature", "-1")
    llama().save_pretrained(tmp_path / "dumb")
    assert "holds no tokenizer" in refused("generate", tmp_path / "dumb", *say)
    saved(tmp_path / "short", llama(vocab_size=500))
    told = refused("generate", tmp_path / "short", *say)
    assert "has a token 511, and the model has a table of 500" in told
    shutil.copytree(folder, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "transformers cannot read" in refused("generate", tmp_path / "cut", *say)
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    judge = ("perplexity", folder, "--text")
    assert "none.txt is empty" in refused(*judge, tmp_path / "none.txt")
    assert "no text in UTF-8" in refused(*judge, tmp_path / "bytes.txt")
    assert "nothing.txt: No such file" in refused(*judge, tmp_path / "nothing.txt")


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = octavo_command("serve", folder, "--port", port)
    assert answer.code == 1
    assert f"port {port} of 127.0.0.1 is in use" in words(answer.err)


def test_serve_tells_its_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        port = 0

        def run(self, sockets: list[socket.socket]) -> None:
            Server.port = sockets[0].getsockname()[1]
            raise KeyboardInterrupt  # as uvicorn does after Ctrl-C, when all is written

    monkeypatch.setattr("octavo.cli.serving.server.server_of", lambda app: Server())
    answer = octavo_command("serve", folder, "--port", "0", "--json")
    assert answer.code == 0
    url = f"http://127.0.0.1:{Server.port}/v1"
    assert json.loads(answer.out) == {"model": "small", "url": url}
    shown = octavo_command("serve", folder, "--port", "0", "--name", "mine").out
    assert words(shown).startswith(f"mine at http://127.0.0.1:{Server.port}/v1; Ctrl-C")
    assert "ended; 0 texts were written" in shown


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_the_extra(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("app", "server"):
        monkeypatch.delitem(sys.modules, f"octavo.cli.serving.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    answer = octavo_command("serve", folder)
    assert answer.code == 1
    assert f"{package} is needed to serve language models and is not installed" in words(answer.err)
    assert 'pip install "octavo[serve]"' in words(answer.err)


def test_options_that_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    asked = ("quantize", f"hf:{folder}", "-o", tmp_path / "out")
    weight_only = (*asked, "--mode", "weight_only")
    for given, told in (
        (asked, "give --mode weight_only"),
        ((*weight_only, "--weights", "x.safetensors"), "and no --weights"),
        ((*weight_only, "--target", "arm"), "takes no --target"),
        ((*weight_only, "--precision", "bfloat16"), "takes no --precision"),
        ((*weight_only, "--effort", "best"), "takes no --effort"),
        ((*weight_only, "--rule", "self_attn"), "--rule 'self_attn': give the name of a module"),
        ((*weight_only, "--rule", "self_attn=int3"), "int8, int4, float"),
        (("quantize", "hf:nowhere", *weight_only[2:]), "there is no folder nowhere"),
        (("quantize", "m:build", "--rule", "a=int8", *asked[2:]), "hf:PATH"),
        (("quantize", "m:build", "-o", "x.octavo"), "--calibration: name some data"),
    ):
        answer = octavo_command(*given)
        assert answer.code == 1
        assert told in words(answer.err)
    assert not (tmp_path / "out").exists()


def test_code_in_a_folder_is_never_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks whoever is at a terminal whether it shall."""
    own = shutil.copytree(folder, tmp_path / "own")
    ran = tmp_path / "ran"
    (own / "code_of_it.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code_of_it.Config"}}
    (own / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *of: "y")
    with pytest.raises(InputError, match="needs code of its own, which Octavo does not run"):
        load_language_model(str(own))
    answer = octavo_command(
        "quantize", f"hf:{own}", "--mode", "weight_only", "-o", tmp_path / "out"
    )
    assert "needs code of its own, which Octavo does not run" in words(answer.err)
    assert not ran.exists()
