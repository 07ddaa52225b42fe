from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from octavo.measuring.samples import changed_samples

X = torch.eye(4)


class Scores(nn.Module):
    """Rows of a table, so that each sample's answer is known."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.rows


FLOAT = Scores([[1.0, 0.0], [1.0, 0.0], [0.0, 4.0], [0.0, 1.0]])
# The first is equal, the second and the last change their class, the third only its scores.
OTHER = Scores([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 0.5]])


def test_changed_classes_come_first_then_changed_scores() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    data = [(X[:2], labels[:2]), (X[2:], labels[2:])]
    worst = changed_samples(FLOAT, OTHER, data, count=3, progress=False)
    assert [(one.index, one.changed) for one in worst] == [(1, 1.0), (3, 1.0), (2, 0.0)]
    assert math.isclose(worst[2].sqnr_db, 10 * math.log10(16 / 4))
    assert worst[0].label == 0
    assert torch.equal(worst[0].inputs[0], X[1])
    assert worst[0].after.tolist() == [0.0, 1.0]


def test_pixels_have_the_share_that_changes() -> None:
    class Maps(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = nn.Parameter(torch.tensor(sign))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0], self.sign * x[:, 1]], 1)

    image = torch.zeros(1, 2, 2, 2)
    image[0, 1, 0] = 1.0
    (one,) = changed_samples(Maps(1.0), Maps(-1.0), [image], progress=False)
    assert one.changed == 0.5


def test_answers_that_are_no_rows_of_samples_give_none() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    assert changed_samples(Sum(), Sum(), [X], progress=False) == []
