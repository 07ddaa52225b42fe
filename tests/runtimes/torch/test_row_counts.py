"""Linear layers at many numbers of rows: few reach the kernel, and no result changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.runtimes.torch.row_counts import AS_THEY_ARE, rounded_up, with_few_row_counts

TARGET = octavo.host_target()


def test_rounding_adds_at_most_a_quarter():
    for rows in range(5000):
        wanted = rounded_up(rows)
        assert rows <= wanted <= rows + rows // 4
        assert rounded_up(wanted) == wanted
    assert len({rounded_up(rows) for rows in range(1, 4097)}) == 44  # of over 4,000


def test_a_product_meets_few_numbers_of_rows():
    seen = []

    def product(x, factor):
        seen.append(x.shape)
        return x.float() @ torch.eye(4) * factor

    call = with_few_row_counts(product, 4)
    for rows in [*range(1, 601), *range(1, 601)]:
        x = torch.randint(0, 255, (rows, 4), dtype=torch.uint8)
        assert torch.equal(call(x, 2.0), x.float() * 2)
    assert len(set(seen)) <= AS_THEY_ARE + 4 * 7
    x = torch.randint(0, 255, (3, 67, 4), dtype=torch.uint8)
    assert torch.equal(call(x, 2.0), x.float() * 2)
    seen.clear()
    call(x[0, :7], 2.0)  # among the first: as it is
    assert seen == [(7, 4)]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_results_do_not_depend_on_the_numbers_met_before(mode, activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), activation, nn.Linear(40, 8)).eval()
    x = torch.randn(120, 24)
    q = octavo.quantize(net, calibration=[x], mode=mode, target=TARGET, progress=False)
    fresh = q.lower("torch")
    for rows in range(1, AS_THEY_ARE + 1):
        q(x[:rows])
    for rows in (33, 57, 70, 119):
        assert torch.equal(q(x[:rows]), fresh(x[:rows]))
    y = torch.randn(3, 37, 24)
    assert torch.allclose(q(y.reshape(-1, 24)), fresh(y.reshape(-1, 24)), atol=1e-6)
