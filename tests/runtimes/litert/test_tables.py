"""Tables and indices on LiteRT."""

from __future__ import annotations

import pytest
import torch
from sweeping import swept
from torch import Tensor, nn

import octavo

INT4 = octavo.QConfigMapping().set_object_type("embedding", octavo.weight_only_qconfig(4))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1))


class Picks(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.before, self.after, self.function = nn.Linear(6, 8), nn.Linear(8, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


PLACES = torch.tensor([3, 0, -1])
CASES = {
    "one axis": lambda x: x[:, PLACES],
    "two axes": lambda x: x.unsqueeze(2)[0][PLACES, torch.tensor([[0], [-1]])],
    "select": lambda x: x.index_select(1, torch.tensor([3, 0])),
}


@pytest.mark.parametrize("how", [{}, {"mode": "weight_only", "calibration": None, "qconfig": INT4}])
def test_rows_are_looked_up_as_integers(how, agrees):
    run = agrees(Words(), torch.randint(0, 50, (3, 7)), **how)
    assert "EMBEDDING_LOOKUP float32" in run.operators


@pytest.mark.parametrize("name", swept(CASES, ["two axes"]))
def test_indices(name, agrees):
    assert "GATHER" in " ".join(agrees(Picks(CASES[name]), torch.randn(2, 5, 6)).operators)


def test_a_mask_as_an_index_is_refused(refusal):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.EmbeddingBag(50, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.layer(tokens)

    words = refusal(Masked(), torch.randint(0, 50, (3, 7)))
    assert "bags of rows" in words
