"""The kernel that rounds columns gives the integers of torch's operators."""

from __future__ import annotations

import pytest
import torch

import octavo
from octavo.numerics.affine import QParams
from octavo.numerics.native.columns import Columns
from octavo.numerics.native.library import library
from octavo.quantization.weights.gptq import gptq


@pytest.fixture
def by_torch(monkeypatch):
    def found(*call):
        with monkeypatch.context() as patch:
            patch.setattr(Columns, "has_kernel", False)
            return gptq(*call)

    return found


@pytest.mark.parametrize(
    ("rows", "columns", "groups"),
    [(16, 9, 1), (33, 130, 1), (40, 9, 40), (3, 70, 3), (24, 36, 4), (68, 65, 2)],
)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_integers(rows, columns, groups, dtype, instruction_set, by_torch):
    """Of one group, of groups of one row (depthwise), and of several."""
    if library() is None:
        pytest.skip("the kernels are not compiled here")
    chance = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=chance)
    mix = torch.randn(groups, columns, columns, generator=chance)
    moments = mix @ mix.transpose(1, 2) / columns
    scheme = octavo.Scheme(dtype, symmetric=True, channel_axis=0)
    scale = weight.abs().amax(1) / scheme.qmax * 0.9
    qparams = QParams(scale, torch.zeros(rows, dtype=torch.int32), scheme)
    found = gptq(weight, moments, qparams, 0.01)
    # A tie of the last bit may go the other way on a CPU whose torch adds otherwise.
    assert (found != by_torch(weight, moments, qparams, 0.01)).sum() <= rows * columns // 1000
    assert (found.abs() == -scheme.qmin).any() or (found == scheme.qmax).any()


def test_what_the_kernel_cannot_read():
    whole = torch.zeros(2, 1, 4)
    columns = Columns(whole, whole, whole, whole, whole, torch.zeros(2, 2, 1, 1), -8, 7)
    with pytest.raises(ValueError, match="columns 0 to 3 of others than"):
        columns.round(0, 3)
    turned = Columns(whole, whole, whole, whole.mT.mT[:, :, ::2], whole, whole, -8, 7)
    with pytest.raises(ValueError, match="columns 0 to 2"):
        turned.round(0, 2)
