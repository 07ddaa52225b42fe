from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.measuring.metrics import Likeness, TopK, WholeSet, class_axis, label_problem, logits_of


def test_sqnr_and_agreement_of_known_numbers() -> None:
    likeness = Likeness()
    likeness.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]]))
    likeness.update(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
    assert likeness.sqnr_db == pytest.approx(10 * math.log10(50 / 50.25))
    assert likeness.agreement == 50.0


def test_sums_over_batches_equal_one_batch() -> None:
    reference, outputs = torch.randn(32, 10), torch.randn(32, 10)
    whole, parts = Likeness(), Likeness()
    whole.update(reference, outputs)
    for part in range(4):
        parts.update(reference[part * 8 :][:8], outputs[part * 8 :][:8])
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.agreement == whole.agreement


def test_equal_outputs_have_infinite_sqnr() -> None:
    likeness = Likeness()
    likeness.update(torch.ones(2, 3), torch.ones(2, 3))
    assert likeness.sqnr_db == math.inf
    likeness.update(torch.zeros(2, 3), torch.ones(2, 3))
    assert likeness.sqnr_db == 0.0


def test_sqnr_counts_all_tensors_of_nested_outputs() -> None:
    reference = {"logits": torch.tensor([[1.0, 0.0]]), "extra": [torch.tensor([2.0]), 7]}
    outputs = {"logits": torch.tensor([[1.0, 0.0]]), "extra": [torch.tensor([2.5]), 7]}
    likeness = Likeness()
    likeness.update(reference, outputs)
    assert likeness.sqnr_db == pytest.approx(10 * math.log10(5 / 0.25))


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[\[2, 4\]\].*\[\[2, 3\]\]"):
        Likeness().update(torch.ones(2, 3), torch.ones(2, 4))


def test_one_score_is_no_decision() -> None:
    likeness = Likeness()
    likeness.update(torch.ones(2, 1), torch.ones(2, 1))
    assert likeness.agreement is None
    assert logits_of(torch.ones(4)) is None


@pytest.mark.parametrize(
    ("shape", "labels", "axis"),
    [
        ((4, 3), None, 1),
        ((4, 7, 3), None, 2),
        ((4, 3, 7), (4, 7), 1),
        ((4, 7, 3), (4, 7), 2),
        ((4, 3, 8, 8), None, 1),
        ((4, 3, 8, 8), (4, 8, 8), 1),
    ],
)
def test_where_the_classes_are(
    shape: tuple[int, ...], labels: tuple[int, ...] | None, axis: int
) -> None:
    given = None if labels is None else torch.zeros(labels, dtype=torch.long)
    assert class_axis(torch.zeros(shape), given) == axis


def test_top1_and_top5() -> None:
    logits = torch.eye(10)
    labels = torch.tensor([0, 1, 2, 3, 9, 9, 9, 9, 9, 9])
    top1, top5 = TopK("top1"), TopK("top5")
    top1.update(logits, labels)
    assert top1.value() == 50.0
    spread = torch.arange(10.0).repeat(10, 1)  # the five best are 5 ... 9
    top5.update(spread, torch.arange(10))
    assert top5.value() == 50.0


def test_pixels_and_the_ignored_label() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1, 0] = 1.0  # class 1 in the upper row
    top1 = TopK("top1")
    top1.update(logits, torch.tensor([[[1, 0], [-100, 0]]]))
    assert top1.value() == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels"),
        (torch.tensor([0.5, 0.5]), "torch.float32"),
        (torch.tensor([1, 2, 3]), r"shape \[3\] do not fit outputs \[2, 4\]"),
        (torch.tensor([1, 4]), "from 1 to 4, the outputs have 4 classes"),
        ({"boxes": 1}, "a dict"),
    ],
)
def test_labels_that_do_not_fit(labels: object, message: str) -> None:
    problem = label_problem(torch.zeros(2, 4), labels)
    assert problem is not None
    assert re.search(message, problem)
    top1 = TopK("top1")
    top1.update(torch.zeros(2, 4), labels)
    assert top1.problem == problem
    assert top1.value() is None


def test_a_function_sees_the_whole_set() -> None:
    def spread(outputs: dict[str, Tensor], labels: Tensor) -> float:
        assert outputs["a"].shape == (5, 2)
        assert labels.tolist() == [0, 1, 2, 3, 4]
        return 0.25

    metric = WholeSet(spread)
    metric.update({"a": torch.zeros(3, 2)}, torch.tensor([0, 1, 2]))
    metric.update({"a": torch.zeros(2, 2)}, torch.tensor([3, 4]))
    assert (metric.name, metric.value()) == ("spread", 0.25)


def test_labels_that_are_no_tensors_come_as_a_list() -> None:
    metric = WholeSet(lambda outputs, labels: float(len(labels)))
    metric.update(torch.zeros(1, 2), ["cat"])
    metric.update(torch.zeros(1, 2), ["dog"])
    assert (metric.name, metric.value()) == ("metric", 2.0)


def test_a_metric_that_is_not_finite() -> None:
    metric = WholeSet(lambda outputs, labels: math.nan)
    metric.update(torch.zeros(1, 2), None)
    with pytest.raises(InputError, match="returned nan"):
        metric.value()


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda outputs, labels: "high", "ValueError: could not convert string to float: 'high'"),
        (lambda outputs, labels: outputs["logits"], "IndexError"),
        (lambda outputs: 1.0, "TypeError: .* takes 1 positional argument but 2 were given"),
    ],
)
def test_a_metric_that_gives_no_number(function: Any, why: str) -> None:
    metric = WholeSet(function)
    metric.update(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(InputError, match=f"the metric metric gives no number: {why}.*labels"):
        metric.value()
