"""Language models as the peers of `benchmarks.decoding` run them: their files, made by their own
tools and kept in a folder, and the calls that write 32 tokens.

All peers read the same weights: llama.cpp files of its own quantizer, OpenVINO GenAI what NNCF
compresses, ONNX Runtime GenAI what its builder makes. (What is written means nothing: llama.cpp
turns keys in another order.)
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import smollm2
from benchmarks.contest import Call

GGUF = {"Q8_0": 7, "Q4_0": 2}  # llama.cpp's numbers
NNCF = {
    "int8": {"mode": "INT8_ASYM"},
    "int4": {"mode": "INT4_SYM", "group_size": 32, "ratio": 1.0, "all_layers": True},
}
BUILDER = """
import benchmarks, runpy
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
"""
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def needed(package: str) -> Any:
    """A package of a peer; whoever lacks it is told its name at PyPI."""
    try:
        return import_module(package)
    except ImportError as error:
        name = {"llama_cpp": "llama-cpp-python"}.get(package, package.replace("_", "-"))
        raise ImportError(f"{name} is missing: pip install {name} ({error})") from None


def kept(place: Path, write: Callable[[Path], object]) -> Path:
    """A file or folder, made where it is not there yet; whoever is killed leaves no half one."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            write(Path(folder) / place.name)
            (Path(folder) / place.name).rename(place)
    return place


def exact_gguf(model: Any, folder: Path, half: bool) -> Path:
    """A model of Llama's kind in llama.cpp's format, unrounded, with SmolLM2's tokenizer."""
    return kept(folder / f"f{16 if half else 32}.gguf", lambda path: write_gguf(model, path, half))


def write_gguf(model: Any, path: Path, half: bool) -> None:
    gguf = needed("gguf")
    config, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(1 if half else 0)
    for name, field in gguf.GGUFReader(str(smollm2.file())).fields.items():
        if name.startswith("tokenizer.") and len(field.types) > 1:
            writer.add_array(name, field.contents())
        elif name.startswith("tokenizer."):
            writer.add_key_value(name, field.contents(), field.types[0])
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            kind = torch.float16 if half and tensor.dim() > 1 else torch.float32
            writer.add_tensor(_name_in_gguf(name), tensor.to(kind).numpy())
    for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{write}")()
    writer.close()


def _name_in_gguf(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{NAMES[rest.removesuffix('.weight')]}.weight"


# It lives as long as llama.cpp may call it.
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *told: None)


def of_llama_cpp(model: Any, folder: Path, form: str) -> Path:
    """A file of llama.cpp's own quantizer."""
    llama_cpp = needed("llama_cpp")
    exact = exact_gguf(model, folder, half=False)

    def write(path: Path) -> None:
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.pure = GGUF[form], True
        llama_cpp.llama_model_quantize(str(exact).encode(), str(path).encode(), settings)

    return kept(folder / f"{form}.gguf", write)


def by_llama_cpp(path: Path, ids: Tensor, new: int) -> Call:
    own = needed("llama_cpp").Llama(
        str(path), n_ctx=1024, n_threads=torch.get_num_threads(), verbose=False, logits_all=False
    )
    prompt = ids[0].tolist()

    def call() -> None:
        own.reset()
        own.eval(prompt)
        for token in range(1, new):
            own.eval([prompt[token % len(prompt)]])

    return call


def of_openvino(model: Any, folder: Path, form: str) -> Path:
    """A folder of OpenVINO GenAI, compressed by NNCF."""
    genai, nncf, openvino = map(needed, ("openvino_genai", "nncf", "openvino"))
    exact = exact_gguf(model, folder, half=True)
    source = folder / "openvino_model.xml"  # beside the file that it is read from
    if not source.exists():
        genai.LLMPipeline(str(exact), "CPU", enable_save_ov_model=True)

    def write(made: Path) -> None:
        made.mkdir()
        how = dict(NNCF[form], mode=nncf.CompressWeightsMode[str(NNCF[form]["mode"])])
        smaller = nncf.compress_weights(openvino.Core().read_model(source), **how)
        openvino.save_model(smaller, made / source.name, compress_to_fp16=False)
        for file in folder.glob("openvino_*tokenizer.*"):
            shutil.copy(file, made)

    return kept(folder / f"nncf-{form}", write)


def by_openvino(path: Path, ids: Tensor, new: int) -> Call:
    genai, openvino = needed("openvino_genai"), needed("openvino")
    own = genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=torch.get_num_threads())
    how = {"max_new_tokens": new, "min_new_tokens": new, "ignore_eos": True, "do_sample": False}
    prompt = openvino.Tensor(ids.numpy())
    return lambda: own.generate(prompt, **how) and None


def of_onnxruntime(model: Any, folder: Path, form: str) -> Path:
    """A folder of ONNX Runtime GenAI, by its builder: products are ``MatMulNBits``."""
    needed("onnxruntime_genai")

    def source(path: Path) -> None:
        from octavo.model.language.gguf import read_gguf

        model.save_pretrained(path)
        file = smollm2.file()
        assert file is not None, "whoever made the model has found it"
        read_gguf(file)[1].save_pretrained(path)

    def write(path: Path) -> None:
        words = ["-i", kept(folder / "hf", source), "-o", path, "-c", folder / "cache"]
        words += ["-p", form, "-e", "cpu", "--extra_options", "block_size=32", "accuracy_level=4"]
        command = [sys.executable, "-c", BUILDER, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    return kept(folder / f"ort-{form}", write)


def by_onnxruntime(path: Path, ids: Tensor, new: int) -> Call:
    genai = needed("onnxruntime_genai")
    config = genai.Config(str(path))
    session = {"session_options": {"intra_op_num_threads": torch.get_num_threads()}}
    config.overlay(json.dumps({"model": {"decoder": session}}))
    own, prompt = genai.Model(config), ids[0].tolist()

    def call() -> None:
        params = genai.GeneratorParams(own)
        length = len(prompt) + new
        params.set_search_options(max_length=length, min_length=length)
        generator = genai.Generator(own, params)
        generator.append_tokens(prompt)
        for _ in range(new):
            generator.generate_next_token()

    return call


# name -> what makes its file or folder, what runs that, and the form
PEERS: dict[str, tuple[Callable[..., Path], Callable[..., Call], str]] = {
    f"{name} {form}": (make, run, form)
    for name, forms, make, run in (
        ("llama.cpp", tuple(GGUF), of_llama_cpp, by_llama_cpp),
        ("OpenVINO GenAI", tuple(NNCF), of_openvino, by_openvino),
        ("ONNX Runtime GenAI", ("int8", "int4"), of_onnxruntime, by_onnxruntime),
    )
    for form in forms
}
