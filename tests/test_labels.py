"""Labels in batches, as Hugging Face's loaders give them, in every function that takes data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_transformers import built
from torch import Tensor, nn

import octavo
from octavo.errors import InputError
from octavo.graph.batches import Signature

CLASSES = 3


def classifier() -> nn.Module:
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64}
    model: nn.Module = built("BertForSequenceClassification", num_labels=CLASSES, **sizes)
    return model


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [
        {
            "input_ids": torch.randint(1, 100, (4, 12)),
            "attention_mask": torch.ones(4, 12, dtype=torch.long),
            "labels": torch.randint(0, CLASSES, (4,)),
        }
        for _ in range(count)
    ]


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


class WithShare(nn.Module):
    """Returns the share of wrong answers too, where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = self.linear(x)
        return scores if labels is None else (scores, (scores.argmax(1) != labels).float().mean())


def small_batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x": torch.rand(4, 8), "labels": torch.randint(0, CLASSES, (4,))}


def test_quantize_and_compare_take_them_for_labels() -> None:
    model, loader = classifier(), batches()
    q = octavo.quantize(model, calibration=loader, progress=False)
    by_hand = octavo.quantize(model, calibration=map(without_labels, loader), progress=False)
    call = without_labels(loader[0])
    assert torch.equal(q(**call).logits, by_hand(**call).logits)

    fp32, *_, int8 = octavo.compare(model, q, loader, rounds=1, progress=False).rows
    for row, network in ((fp32, model), (int8, q)):
        with torch.no_grad():
            best = [network(**without_labels(batch)).logits.argmax(1) for batch in loader]
        right = [answer == batch["labels"] for answer, batch in zip(best, loader, strict=True)]
        assert row.metric == 100 * torch.cat(right).double().mean().item()


def test_other_functions_take_them_for_labels() -> None:
    model, loader = WithShare(), [small_batch(), small_batch()]
    q = octavo.quantize(model, calibration=loader, progress=False)
    assert octavo.layer_errors(model, q, loader, progress=False)
    assert octavo.distributions(model, q, loader, progress=False)
    assert octavo.verify(q, loader).passed
    found = octavo.sensitivity(model, calibration=loader, data=loader, progress=False)
    assert found.metric == "top1"
    assert found.float_metric is not None
    graph = octavo.capture(model, (loader[0]["x"],))
    calibrated = octavo.calibrate(graph, octavo.plan(graph), loader, signature=Signature.of(model))
    assert calibrated.batches == len(loader)
    qat = octavo.prepare_qat(model, calibration=loader, progress=False)
    assert qat.signature == Signature(("x",), 1)


@pytest.mark.sweep
def test_search_and_report_take_them_for_labels() -> None:
    model, loader = WithShare(), [small_batch()]
    found = octavo.search(
        model, max_drop=100.0, calibration=loader, data=loader, time_budget=10.0, progress=False
    )
    with torch.no_grad():
        right = model(loader[0]["x"]).argmax(1) == loader[0]["labels"]
    assert found.float_metric == 100 * right.double().mean().item()
    page = octavo.report(model, found.model, loader, progress=False)
    assert page.comparison.metric == "top1"


def test_a_call_with_labels_says_what_to_do(tmp_path: Path) -> None:
    batch = small_batch()
    q = octavo.quantize(WithShare(), calibration=[batch], progress=False)
    q.save(tmp_path / "m.octavo")
    for model in (q, octavo.load(tmp_path / "m.octavo")):
        with pytest.raises(InputError, match="leave the labels out of the call, and compute the"):
            model(**batch)


def test_labels_in_the_example_are_arguments() -> None:
    model, batch = WithShare(), small_batch()
    for example in (batch, tuple(batch.values())):
        q = octavo.quantize(model, example, calibration=[batch], progress=False)
        assert q(**batch)[1] == (q(**batch)[0].argmax(1) != batch["labels"]).float().mean()
        octavo.compare(model, q, [batch], rounds=1, progress=False)  # which gives q its labels
        octavo.layer_errors(model, q, [batch], progress=False)


def test_labels_that_inputs_gives_are_arguments() -> None:
    model, batch = WithShare(), small_batch()
    q = octavo.quantize(model, calibration=[batch], inputs=dict, progress=False)
    assert len(q(**batch)) == 2
    octavo.layer_errors(model, q, [batch], progress=False)


def test_a_file_of_old_that_names_labels_takes_none(tmp_path: Path) -> None:
    model, batch = WithShare(), small_batch()
    q = octavo.quantize(model, calibration=[batch], progress=False)
    q.signature = Signature(("x", "labels"), 1)  # as it was written once
    q.save(tmp_path / "old.octavo")
    loaded = octavo.load(tmp_path / "old.octavo")
    assert loaded.signature == Signature(("x",), 1)
    octavo.layer_errors(model, loaded, [batch], progress=False)
