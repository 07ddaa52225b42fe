from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.runtimes.native.matrix import Matrix, pack, unpack


def test_rows_stand_in_blocks_of_sixteen_and_columns_in_fours():
    weight = torch.arange(-8, 8, dtype=torch.int8)[:, None] * torch.tensor([1, 2, 3, 4, 5, 6])
    packed = pack(weight.to(torch.int8))
    assert packed.shape == (1, 2, 16, 4)
    assert packed[0, 0, 3].tolist() == [-5, -10, -15, -20]
    assert packed[0, 1, 3].tolist() == [-25, -30, 0, 0]


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 9))
def test_what_is_packed_comes_back(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (rows, columns), generator=generator).to(torch.int8)
    assert unpack(pack(weight), rows, columns).equal(weight)


def test_sums_scales_and_biases_are_those_of_rows():
    weight = torch.tensor([[1, 2, 3], [-4, -5, -6]], dtype=torch.int8)
    matrix = Matrix.of(weight, torch.tensor([0.5, 0.25]), None)
    assert matrix.shape == (16, 4)
    assert matrix.sums[:3].tolist() == [6, -15, 0]
    assert matrix.scales[:3].tolist() == [0.5, 0.25, 0.0]
    assert matrix.bias.tolist() == [0.0] * 16


@pytest.mark.parametrize("index", range(4))
def test_tensors_of_another_shape_type_or_order_are_refused(index):
    tensors = Matrix.of(torch.ones(32, 8, dtype=torch.int8), torch.ones(32), None).tensors
    Matrix(*tensors).check()
    for wrong in (tensors[index][:-1], tensors[index].double()):
        if index == 0 and wrong.dtype == torch.int8:
            continue  # fewer rows of weights: the other tensors are too long
        with pytest.raises(ValueError, match="no part of packed weights"):
            Matrix(*tensors[:index], wrong, *tensors[index + 1 :]).check()
    with pytest.raises(ValueError, match="no part of packed weights"):
        Matrix(tensors[0][:1], *tensors[1:]).check()
