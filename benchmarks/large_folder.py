"""A model of a billion random weights, from a folder to a folder: seconds and peak memory.

It is Llama-like, in bfloat16, and made on disk shard by shard (2 GB; removed afterwards). Each form
is quantized in a process of its own, whose peak memory is that of all that it maps and holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.report import Goal, Report, parsed, parser

SIZES = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
FORMS = {
    "8 bits": "octavo.weight_only_qconfig()",
    "4 bits, groups of 32": "octavo.weight_only_qconfig(4, group_size=32)",
    "4 bits, groups of 128": "octavo.weight_only_qconfig(4, group_size=128)",
}
MOST_SECONDS, MOST_EXTRA = 120.0, 1e9

# VmHWM is of this process alone; getrusage's peak counts what its parent held, too.
RUN = """
import json, sys, time
import benchmarks, octavo
started = time.perf_counter()
octavo.quantize_folder(sys.argv[1], sys.argv[2], qconfig=eval(sys.argv[3]), progress=False)
seconds = time.perf_counter() - started
lines = open("/proc/self/status").read().splitlines()
peak = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak": peak}))
"""


def shards(layers: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of the tensors, by name, a shard at a time."""
    table = (SIZES["vocab_size"], SIZES["hidden_size"])
    yield {"model.embed_tokens.weight": table}
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    of_keys = hidden * SIZES["num_key_value_heads"] // SIZES["num_attention_heads"]
    block = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (of_keys, hidden),
        "self_attn.v_proj.weight": (of_keys, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for index in range(layers):
        yield {f"model.layers.{index}.{name}": shape for name, shape in block.items()}
    yield {"model.norm.weight": (hidden,), "lm_head.weight": table}


def make(folder: Path, layers: int) -> int:
    """Write a folder in Hugging Face's layout; how many weights it has."""
    torch.manual_seed(0)
    places, count = {}, 0
    for number, shapes in enumerate(shards(layers)):
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)
            for name, shape in shapes.items()
        }
        file = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shapes, file)
        count += sum(tensor.numel() for tensor in tensors.values())
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "num_hidden_layers": layers,
        **SIZES,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return count


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    made.add_argument("--layers", type=int, default=20, help="decoder blocks; 20 for a billion")
    made.add_argument("--folder", help="where to make the model; a temporary folder without")
    options = parsed(made, words)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = Path(folder, "float")
        source.mkdir()
        count = make(source, options.layers)
        settings = {"weights": count, "layers": options.layers}
        report = Report("large_folder", "A billion weights from folder to folder", settings)
        for form in options.forms:
            row = measured(source, Path(folder, form.replace(" ", "")), FORMS[form])
            report.rows.append({"form": form, **row})
            extra = row["peak GB"] - row["quantized GB"]
            report.goals.append(Goal(f"{form}: seconds", row["seconds"], MOST_SECONDS))
            report.goals.append(Goal(f"{form}: GB beside its size", extra, MOST_EXTRA / 1e9))
        report.finish(options.out)


def measured(source: Path, out: Path, qconfig: str) -> dict[str, Any]:
    """Seconds and peak memory of one form, in a process of its own."""
    command = [sys.executable, "-c", RUN, str(source), str(out), qconfig]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return {
        "seconds": found["seconds"],
        "peak GB": found["peak"] / 1e9,
        "quantized GB": size / 1e9,
    }


if __name__ == "__main__":
    main()
