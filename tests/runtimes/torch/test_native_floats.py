"""Transformers in one native call: what stands between their layers on integers is in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from decibel import sqnr_db
from torch import Tensor, nn

import octavo
from octavo.graph.program import Step
from octavo.numerics.native import library
from octavo.runtimes.native.program import Program
from octavo.runtimes.torch import int8
from octavo.runtimes.torch.int8 import lower_to

pytestmark = pytest.mark.skipif(bool(library.obstacle()), reason="no kernels here: make native")
TARGET = octavo.host_target()


class Block(nn.Module):
    """A block of a transformer, the norms before the layers (as in ViT) or behind them (BERT)."""

    def __init__(self, norm: type[nn.Module], first: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(32) for _ in range(2))
        self.packed, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)
        self.first = first

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = self.packed(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.norms
        if self.first:
            x = x + self.attended(one(x))
            return x + self.narrow(F.gelu(self.wide(two(x))))
        x = one(x + self.attended(x))
        return two(x + self.narrow(F.gelu(self.wide(x))))


class Encoder(nn.Module):
    def __init__(self, norm: type[nn.Module], first: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.blocks = nn.Sequential(*(Block(norm, first) for _ in range(2)))
        self.norm, self.head = norm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


def programs_of(monkeypatch: pytest.MonkeyPatch, q: octavo.QuantizedModel) -> list[Step]:
    """The flat function's steps."""
    seen: list[Step] = []

    def spying(inputs, steps, outputs, constants):
        seen.extend(steps)
        return compile_steps(inputs, steps, outputs, constants)

    compile_steps = int8.compile_steps
    monkeypatch.setattr(int8, "compile_steps", spying)
    lower_to(q.graph, "python")
    return seen


@pytest.mark.parametrize("first", [True, False], ids=["norms before", "norms behind"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_transformer_is_one_call(monkeypatch, norm, first):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 32)
    rules = octavo.QConfigMapping().set_object_type(
        "scaled_dot_product_attention", octavo.static_qconfig(TARGET)
    )
    q = octavo.quantize(
        Encoder(norm, first).eval(),
        x,
        calibration=[x],
        qconfig=rules,
        target=TARGET,
        progress=False,
    )
    steps = programs_of(monkeypatch, q)
    assert sum(isinstance(step.function, Program) for step in steps) == 1
    others = [step for step in steps if not isinstance(step.function, Program)]
    assert all(q.graph.meta(step.out) is None for step in others)  # numbers
    for batch in (1, 2, 3):
        y = torch.randn(batch, 9, 32)
        assert sqnr_db(q.lower("reference")(y), q(y)) > 40


@pytest.mark.skipif(
    library.instruction_set() not in ("avx512_vnni", "amx"), reason="torch's kernels are quicker"
)
@pytest.mark.parametrize("first", [True, False], ids=["norms before", "norms behind"])
def test_a_dynamic_transformer_is_one_call(monkeypatch, first):
    """With its attention, functions and norms in float."""
    torch.manual_seed(0)
    model, x = Encoder(nn.LayerNorm, first).eval(), torch.randn(2, 9, 32)
    q = octavo.quantize(model, x, mode="dynamic", target=TARGET)
    steps = programs_of(monkeypatch, q)
    assert sum(isinstance(step.function, Program) for step in steps) == 1
    others = [step for step in steps if not isinstance(step.function, Program)]
    assert all(q.graph.meta(step.out) is None for step in others)  # numbers
    for batch in (1, 2, 9):
        y = torch.randn(batch, 9, 32)
        assert sqnr_db(q.lower("reference")(y), q(y)) > 40


def test_sizes_that_are_known_at_a_call_are_read_by_it():
    """The number of tokens is open, and reshapes read it."""
    torch.manual_seed(0)
    model, x = Encoder(nn.LayerNorm, True).eval(), torch.randn(2, 9, 32)
    q = octavo.quantize(
        model,
        x,
        calibration=[x],
        target=TARGET,
        open_sizes={"x": {0: "N", 1: "tokens"}},
        progress=False,
    )
    for batch, tokens in ((1, 4), (2, 9), (3, 17), (1, 4)):
        y = torch.randn(batch, tokens, 32)
        assert sqnr_db(q.lower("reference")(y), q(y)) > 40


class Apart(nn.Module):
    """Float operators of which programs know one half each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        weighed = (y - 0.5) / (1.0 + y.abs()) * y.softmax(-1)
        return self.two(torch.cat([weighed[:, :8], y.chunk(2, -1)[1]], -1)) - weighed.softmax(0)


def test_what_programs_do_not_know_stays_torchs():
    torch.manual_seed(0)
    x = torch.randn(6, 16)
    q = octavo.quantize(Apart().eval(), calibration=[x], target=TARGET, progress=False)
    assert sqnr_db(q.lower("reference")(x), q(x)) > 40
