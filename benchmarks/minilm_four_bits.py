"""MiniLM-L6 with weights of four bits in groups of 32: what each method brings.

The sentence encoder and the 2,048 docstrings of `benchmarks.minilm`; methods see 1,024 others, in
batches of one length without padding, which would count as words do. The tables of words stay in
eight bits but in the first row, and in the last ones values and outputs of attention do: noise in
them is the same for all words of a text, so that the mean over words keeps it. "four bits" is the
part of the weights of linear layers that has four. Beside them dynamic int8, which sees no data.
One model for all lengths, by the oracle: the recall of fp32's ten nearest texts, the cosine to
fp32, the seconds of the whole call. But for fp32 itself, products of floats are computed in
bfloat16 where the CPU has instructions for it: that is 50 dB from float32, and four bits are 20.

    python -m benchmarks.minilm_four_bits --resume --docs docs/guide.md
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from benchmarks.docstrings import docstrings
from benchmarks.minilm import LENGTHS, Ids, encoder, nearest, recall
from benchmarks.report import Goal, Report, parsed, parser, write_table

TEXTS, CALIBRATION = 2048, 1024
BATCH = 32
LEAST_RECALL = 0.95
FOUR = octavo.weight_only_qconfig(4, group_size=32, symmetric=False)
EIGHT = octavo.weight_only_qconfig(8)
LAYERS = "encoder.encoder.layer"
VALUES = tuple(
    f"{LAYERS}.{index}.attention.{name}"
    for index in range(6)
    for name in ("self.value", "output.dense")
)
ALL, BUT_TABLES, BUT_VALUES = (
    octavo.QConfigMapping().set_global(FOUR),
    octavo.QConfigMapping().set_global(FOUR).set_object_type("embedding", EIGHT),
    octavo.QConfigMapping().set_global(FOUR).set_object_type("embedding", EIGHT),
)
for path in VALUES:
    BUT_VALUES.set_module_name(path, EIGHT)
Settings = Mapping[str, Any]  # of `octavo.quantize`
LEARNED = (octavo.GPTQ(), octavo.Reconstruction(steps=100))
FEW_BITS = {"mode": "weight_only", "qconfig": BUT_TABLES}
VALUES_IN_EIGHT = {"mode": "weight_only", "qconfig": BUT_VALUES}
DYNAMIC = "int8, dynamic"
WAYS: Mapping[str, Settings] = {
    DYNAMIC: {"mode": "dynamic"},
    "to nearest, tables too": {**FEW_BITS, "qconfig": ALL, "bias_correction": False},
    "to nearest": {**FEW_BITS, "bias_correction": False},
    "to nearest, bias correction": FEW_BITS,
    "GPTQ": {**FEW_BITS, "weights": LEARNED[:1]},
    "GPTQ, Reconstruction": {**FEW_BITS, "weights": LEARNED},
    "values in eight bits, GPTQ": {**VALUES_IN_EIGHT, "weights": LEARNED[:1]},
    "values in eight bits, GPTQ, Reconstruction": {**VALUES_IN_EIGHT, "weights": LEARNED},
}
# By the goal.
JUDGED = (DYNAMIC, "GPTQ, Reconstruction", "values in eight bits, GPTQ, Reconstruction")


def by_length(texts: Sequence[str], tokenizer: Any) -> list[tuple[Tensor, Ids]]:
    """The places of texts of one length, and their tokens, without padding."""
    tokens = tokenizer(list(texts), truncation=True, max_length=LENGTHS[-1])["input_ids"]
    places: dict[int, list[int]] = {}
    for place, ids in enumerate(tokens):
        places.setdefault(len(ids), []).append(place)
    batches = []
    for _, alike in sorted(places.items()):
        for part in torch.tensor(alike).split(BATCH):
            ids = torch.tensor([tokens[place] for place in part.tolist()])
            batches.append((part, (ids, torch.ones_like(ids))))
    return batches


def embeddings(model: nn.Module, batches: Sequence[tuple[Tensor, Ids]]) -> Tensor:
    """Of all texts, in their order, each of length 1."""
    with torch.no_grad():
        found = torch.cat([model(*ids) for _, ids in batches])
    order = torch.cat([places for places, _ in batches]).argsort()
    return F.normalize(found[order].float(), dim=1)


def share_of_four(net: nn.Module, settings: Settings) -> float:
    """The part of the weights of linear layers that is to have four bits."""
    eight = VALUES if settings.get("qconfig") is BUT_VALUES else ()
    sizes = {p: m.weight.numel() for p, m in net.named_modules() if isinstance(m, nn.Linear)}
    four = sum(size for path, size in sizes.items() if path not in eight)
    return four / sum(sizes.values()) if "qconfig" in settings else 0.0


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, for the docs."""
    lines = [
        "| four bits, weight-only | of the weights | recall@10 | cosine |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        numbers = f"{100 * row['four bits']:.0f} % | {row['recall@10']:.3f} | {row['cosine']:.4f}"
        lines.append(f"| {row['way']} | {numbers} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    made.add_argument("--resume", action="store_true", help="keep the rows of an earlier run")
    made.add_argument("--docs", type=Path, help="file whose table is written anew")
    options = parsed(made, words)
    net, tokenizer = encoder()
    every = docstrings(TEXTS + CALIBRATION)
    texts, shown = (by_length(part, tokenizer) for part in (every[:TEXTS], every[TEXTS:]))
    chance = torch.Generator().manual_seed(0)
    calibration = [shown[at][1] for at in torch.randperm(len(shown), generator=chance)]
    report = Report(
        "minilm_four_bits",
        "MiniLM-L6 with weights of four bits in groups of 32, on docstrings",
        {"texts": TEXTS, "calibration texts": CALIBRATION},
    )
    if options.resume:
        report.resume(options.out)
    there = {row["way"] for row in report.rows}
    fp32 = embeddings(net, texts)
    places = torch.arange(TEXTS)
    wanted = nearest(fp32, places)
    torch.set_float32_matmul_precision("medium")
    for way in options.ways:
        if way in there:
            continue
        settings = WAYS[way] if way == DYNAMIC else {"calibration": calibration} | WAYS[way]
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", octavo.OctavoWarning)
            q = octavo.quantize(net, calibration[0], scope="model", progress=False, **settings)
        seconds = time.perf_counter() - started
        found = embeddings(q.lower("reference"), texts)
        row = {
            "way": way,
            "four bits": share_of_four(net, WAYS[way]),
            f"recall@{wanted.shape[1]}": recall(nearest(found, places), wanted),
            "cosine": float((found * fp32).sum(1).mean()),
            "seconds": seconds,
        }
        report.rows.append(row)
        report.write(options.out)
    order = list(WAYS)
    report.rows.sort(key=lambda row: order.index(row["way"]))
    report.goals = [
        Goal(f"{row['way']}: recall", row["recall@10"], LEAST_RECALL, at_most=False)
        for row in report.rows
        if row["way"] in JUDGED
    ]
    if options.docs:
        write_table(table_of(report.rows), options.docs)
    report.finish(options.out)


if __name__ == "__main__":
    main()
