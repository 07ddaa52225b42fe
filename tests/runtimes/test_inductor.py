"""The compiled runtime: the same answers, clear refusals."""

from __future__ import annotations

import shutil

import pytest
import torch
from calling import Net
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


@pytest.mark.sweep
@needs_compiler
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_linear_layers_of_a_network_of_convolutions(mode):
    """Of one channel, strided, and with a linear layer behind: with VNNI that did not compile."""
    torch.manual_seed(0)
    x = torch.randn(2, 1, 9, 9)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Linear(16, 1)
    ).eval()
    data = [x] if mode == "static" else None
    q = octavo.quantize(
        net, x, calibration=data, mode=mode, target=octavo.host_target(), progress=False
    )
    compiled, oracle = q.lower("inductor"), q.lower("reference")
    assert compiled.lowered.kernels.keys() >= {"3", "4"}
    for batch in (2, 5):
        x = torch.randn(batch, 1, 9, 9)
        assert torch.allclose(compiled(x), oracle(x), atol=0.01)


@needs_compiler
def test_a_shortcut_of_what_the_convolution_reads():
    """Inductor drops the copy that the kernel with an addition would overwrite."""

    def residual(net, x):
        h = net.a(x)
        return net.c((net.b(h) + h).relu())

    torch.manual_seed(0)
    model = Net(residual, **{name: nn.Conv2d(4, 4, 3, padding=1) for name in "abc"})
    x = torch.randn(2, 4, 9, 9)
    q = octavo.quantize(model, calibration=[x], target=octavo.host_target(), progress=False)
    compiled = q.lower("inductor", check=False)
    assert compiled.lowered.fallbacks == {}
    assert torch.allclose(compiled(x), q.lower("reference")(x), atol=1e-6)


@needs_compiler
def test_an_error_of_the_compiler_is_never_empty(monkeypatch):
    def compiled(run):
        def call(*tensors):
            raise AssertionError

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    q = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4), progress=False)
    with pytest.raises(RuntimeUnavailable) as refused:
        q.lower("inductor")
    assert "AssertionError raise AssertionError (test_inductor.py)" in str(refused.value)
    assert 'use .lower("torch")' in str(refused.value)


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    q = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4), progress=False)
    with pytest.raises(RuntimeUnavailable, match=r"needs a C\+\+ compiler"):
        q.lower("inductor")


def test_options_that_it_has_not(tmp_path):
    q = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4), progress=False)
    with pytest.raises(RuntimeUnavailable, match="inductor runtime has no option 'threads'"):
        q.lower("inductor", threads=1)
