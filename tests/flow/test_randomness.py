"""A module that draws random numbers in evaluation is a border of regions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import CaptureError


class Noisy(nn.Module):
    """Draws noise in evaluation too, as denoising models and Bayesian ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.up(x)
        result: Tensor = x + self.down((wide + 0.1 * torch.randn_like(wide)).relu())
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.noisy, self.head = Noisy(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.noisy(self.body(x)))
        return scores


def seeded(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        result: Tensor = model(x)
        return result


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_what_draws_random_numbers_stays_in_python(mode: str) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    data = [torch.randn(8, 16) for _ in range(4)]
    with pytest.warns(octavo.OctavoWarning, match=r"module 'noisy'.*draws random numbers"):
        q = octavo.quantize(
            model, calibration=data, mode=mode, target=octavo.host_target(), progress=False
        )
    regions = [p for p, m in q.named_modules() if isinstance(m, octavo.QuantizedModel)]
    assert regions == ["body", "noisy.up", "noisy.down", "head"]
    assert isinstance(q, Net)
    x = data[0]
    one, other = seeded(q, x, 1), seeded(q, x, 2)
    assert not torch.equal(one, other)  # the noise is drawn anew
    expected = seeded(model, x, 1)
    noise = (expected - seeded(model, x, 2)).norm()
    assert (one - expected).norm() < 0.3 * noise  # and is the same noise as the float model's


def test_the_whole_is_an_error_that_says_so() -> None:
    with pytest.raises(CaptureError, match="draws random"):
        octavo.quantize(Net().eval(), torch.randn(8, 16), scope="model", progress=False)
