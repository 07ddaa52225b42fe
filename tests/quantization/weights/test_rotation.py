"""The matrices of `octavo.Rotation`."""

from __future__ import annotations

import pytest
import torch

import octavo
from octavo.errors import PlanError
from octavo.quantization.weights.rotation import hadamard

# Powers of two; Paley's first construction; his second; both, doubled; hidden sizes of real models.
KNOWN = [1, 2, 8, 12, 20, 24, 28, 36, 40, 60, 76, 576, 768, 896, 960, 1536, 2304]


@pytest.mark.parametrize("size", KNOWN)
def test_rows_are_orthogonal_ones(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.t(), size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [0, 3, 6, 10, 92])
def test_where_none_is_known(size: int) -> None:
    """There is none of 3, 6 and 10; one of 92 takes another construction."""
    assert hadamard(size) is None


@pytest.mark.parametrize("size", [64, 36, 15])
def test_the_matrix_is_orthogonal_and_its_seeds(size: int) -> None:
    matrix = octavo.Rotation().matrix(size)
    one = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.t(), one, atol=1e-12, rtol=0)
    assert torch.equal(matrix, octavo.Rotation().matrix(size))
    assert not torch.equal(matrix, octavo.Rotation(seed=1).matrix(size))


def test_one_large_channel_becomes_even() -> None:
    turned = torch.eye(64, dtype=torch.float64)[5] @ octavo.Rotation().matrix(64)
    torch.testing.assert_close(turned.abs(), torch.full((64,), 1 / 8, dtype=torch.float64))


def test_a_graph_refuses_it() -> None:
    with pytest.raises(PlanError, match="'rotation' turns the inputs of modules"):
        octavo.quantize(
            torch.nn.Linear(8, 8),
            calibration=[torch.rand(4, 8)],
            weights=[octavo.Rotation()],
            progress=False,
        )
