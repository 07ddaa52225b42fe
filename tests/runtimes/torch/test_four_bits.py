"""torch's own order of four-bit weights, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.runtimes.torch import four_bits


@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (128, 64), (192, 96), (96, 64), (80, 64)])
def test_what_is_packed_is_read_back(rows, columns):
    integers = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    read = four_bits.reader(four_bits.pack(integers), integers)
    if read is None:
        assert rows % 64  # where the last rows stand otherwise, the order is not known
        return
    assert torch.equal(read(slice(None)), integers)
    assert torch.equal(read(slice(64, 1000)), integers[64:])


def test_an_order_that_is_not_known_is_noticed():
    integers = torch.randint(0, 16, (64, 32), dtype=torch.uint8)
    assert four_bits.reader(four_bits.pack(integers).flip(0), integers) is None


@pytest.mark.parametrize("symmetric", [True, False])
def test_many_rows_read_what_the_kernel_holds(symmetric):
    torch.manual_seed(0)
    x = torch.randn(100, 64)
    qconfig = octavo.weight_only_qconfig(4, group_size=32, symmetric=symmetric)
    q = octavo.quantize(nn.Linear(64, 1024), x, qconfig=qconfig, progress=False)
    torch.testing.assert_close(q(x), q.lower("reference")(x), rtol=1e-4, atol=1e-4)
