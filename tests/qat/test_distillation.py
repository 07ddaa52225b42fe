"""The teacher's part of a loss: its value, what has a gradient, and what does not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import octavo
from octavo.errors import InputError
from octavo.qat import DistillationLoss


class Fixed(nn.Module):
    """Scores that are what they are, and whether they were asked for in training mode."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.scores + 0 * x.sum()


def test_the_loss_is_the_formula_by_hand() -> None:
    """At temperature 2 the student says 1/4 and 3/4, the teacher 1/2 and 1/2:
    KL = 1/2 ln(4/3). At temperature 1 the student gives the label 9/10.
    """
    student = torch.tensor([[0.0, 2 * math.log(3)]])
    loss = DistillationLoss(Fixed(torch.zeros(1, 2)), weight=0.25, temperature=2.0)
    found = loss(student, torch.tensor([1]), torch.zeros(1))
    expected = 0.75 * math.log(10 / 9) + 0.25 * 4 * 0.5 * math.log(4 / 3)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_the_teachers_part_is_zero_where_both_agree(temperature: float) -> None:
    scores = torch.randn(5, 4)
    loss = DistillationLoss(Fixed(scores + 3), weight=1.0, temperature=temperature)
    assert loss(scores, torch.zeros(5, dtype=torch.long), scores).item() == pytest.approx(
        0, abs=1e-5
    )
    other = loss(scores.flip(1), torch.zeros(5, dtype=torch.long), scores)
    assert other.item() > 0.01


def test_the_mean_is_over_the_batch_and_over_further_axes() -> None:
    """As cross entropy's: scores ``[N, classes, ...]``."""
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    labels = torch.randint(0, 3, (2, 4))
    found = DistillationLoss(Fixed(teacher), weight=0.5, temperature=3.0)(student, labels, student)
    flat = [scores.movedim(1, -1).reshape(8, 3) for scores in (student, teacher)]
    same = DistillationLoss(Fixed(flat[1]), weight=0.5, temperature=3.0)
    torch.testing.assert_close(found, same(flat[0], labels.reshape(8), student))
    wanted, mine = (functional.softmax(scores.double() / 3, 1) for scores in (flat[1], flat[0]))
    kl = (wanted * (wanted.log() - mine.log())).sum(1).mean()
    own = functional.cross_entropy(student, labels)
    torch.testing.assert_close(found, (0.5 * own + 0.5 * 9 * kl).float())


def test_no_weight_is_the_plain_loss() -> None:
    scores, labels = torch.randn(6, 4), torch.randint(0, 4, (6,))
    teacher = Fixed(torch.randn(6, 4))
    found = DistillationLoss(teacher, weight=0.0)(scores, labels, scores)
    torch.testing.assert_close(found, functional.cross_entropy(scores, labels))
    margin = nn.MultiMarginLoss()
    found = DistillationLoss(teacher, margin, weight=0.0)(scores, labels, scores)
    torch.testing.assert_close(found, margin(scores, labels))


def test_the_gradient_by_the_scores_is_that_of_the_formula() -> None:
    """Hinton et al. 2015, section 2: of T^2 KL by the scores it is T (softmax - wanted) / N."""
    scores = torch.randn(6, 4, requires_grad=True)
    teacher = Fixed(torch.randn(6, 4))
    loss = DistillationLoss(teacher, weight=1.0, temperature=4.0)
    loss(scores, torch.zeros(6, dtype=torch.long), scores.detach()).backward()
    mine, wanted = (functional.softmax(s.detach() / 4, 1) for s in (scores, teacher.scores))
    torch.testing.assert_close(scores.grad, 4 * (mine - wanted) / 6)


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_left_as_it_was(training: bool) -> None:
    teacher = nn.Sequential(Fixed(torch.randn(2, 3)), nn.Dropout(0.5)).train(training)
    teacher[1].train(not training)
    loss = DistillationLoss(teacher)
    loss(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]), torch.zeros(1)).backward()
    assert teacher[0].modes == [False]
    assert [module.training for module in teacher] == [training, not training]
    assert teacher[0].scores.grad is None
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_a_losss_own_parameters_are_to_be_trained() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
            return self.factor * functional.cross_entropy(scores, labels)

    loss = DistillationLoss(Fixed(torch.randn(2, 3)), Weighted())
    assert [name for name, _ in loss.named_parameters()] == ["loss.factor"]


def test_the_teacher_is_called_as_the_student_is() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
            return x + shift

    x, shift, labels = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0, 2])
    loss = DistillationLoss(Sum(), weight=1.0)
    assert loss(x + shift, labels, x, shift=shift).item() == pytest.approx(0, abs=1e-6)


def test_a_prepared_model_learns_from_its_float_model() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(64, 6)
    config = octavo.qat_qconfig(weight_bits=2)
    qat = octavo.prepare_qat(net, x, config)
    loss = DistillationLoss(net, weight=1.0)
    optimizer = torch.optim.Adam(qat.parameters(), 0.01)
    losses = []
    for _ in range(40):
        value = loss(qat(x), torch.zeros(64, dtype=torch.long), x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_that_is_no_share(weight: float) -> None:
    with pytest.raises(InputError, match=f"weight is {weight}.* 0 to 1"):
        DistillationLoss(nn.Identity(), weight=weight)


@pytest.mark.parametrize("temperature", [0.0, -2.0, math.nan])
def test_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(InputError, match=f"temperature is {temperature}; it must be above 0"):
        DistillationLoss(nn.Identity(), temperature=temperature)


def test_scores_of_another_shape() -> None:
    loss = DistillationLoss(Fixed(torch.zeros(2, 5)))
    with pytest.raises(InputError, match=r"\[2, 5\], the student scores of shape \[2, 3\]"):
        loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(1))


def test_a_teacher_that_gives_no_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(InputError, match="the teacher gives tuple"):
        DistillationLoss(Pair())(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 3))
