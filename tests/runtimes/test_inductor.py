"""The compiled runtime: the same answers, clear refusals."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import RuntimeUnavailable

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


class Block(nn.Module):
    """Products, a layer norm, an activation and softmax between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return torch.softmax(x + self.down(nn.functional.gelu(self.up(self.norm(x)))), -1)


@needs_compiler
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_it_answers_as_the_oracle_at_any_batch_size(mode):
    torch.manual_seed(0)
    x = torch.randn(2, 7, 32)
    q = octavo.quantize(
        Block(),
        x,
        calibration=[x] if mode == "static" else None,
        mode=mode,
        target=octavo.host_target(),
        progress=False,
    )
    compiled, oracle = q.lower("inductor"), q.lower("reference")
    for batch in (2, 3, 1):
        x = torch.randn(batch, 7, 32)
        assert torch.allclose(compiled(x), oracle(x), atol=2e-3)
    assert compiled.lowered.kernels.keys() >= {"up", "down"}
    assert octavo.verify(q, runtimes=["inductor"]).passed


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    q = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4), progress=False)
    with pytest.raises(RuntimeUnavailable, match=r"needs a C\+\+ compiler"):
        q.lower("inductor")


def test_options_that_it_has_not(tmp_path):
    q = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4), progress=False)
    with pytest.raises(RuntimeUnavailable, match="inductor runtime has no option 'threads'"):
        q.lower("inductor", threads=1)
