"""torch.compile of a model in training: the values of the uncompiled one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import TrainingError
from octavo.qat import QATModel


def prepared() -> QATModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
    return octavo.prepare_qat(net, torch.rand(8, 6))


def losses(model: nn.Module, qat: QATModel, steps: int, freeze_at: int) -> list[float]:
    """Of a training that freezes ranges and norms at a step."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for step in range(steps):
        if step == freeze_at:
            qat.observe(False).freeze_batch_norms()
        loss = (model(torch.rand(8, 6)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(float(loss.detach()))
    return found


# Inductor compiles C++ for each way in which a step may go: one is enough.
@pytest.mark.sweep
@pytest.mark.parametrize(("backend", "steps"), [("aot_eager", 6), ("inductor", 2)])
def test_it_trains_as_uncompiled(backend: str, steps: int) -> None:
    torch._dynamo.reset()
    qat = prepared()
    twin = copy.deepcopy(qat)
    compiled = torch.compile(qat, backend=backend)
    expected = losses(twin, twin, steps, freeze_at=3)
    assert losses(compiled, qat, steps, freeze_at=3) == pytest.approx(expected, rel=1e-4)
    x = torch.rand(8, 6)
    with torch.no_grad():
        assert torch.equal(octavo.convert(compiled).lower("reference")(x), qat.eval()(x))


@pytest.mark.sweep
def test_a_nan_is_found_there_too() -> None:
    torch._dynamo.reset()
    qat = octavo.prepare_qat(nn.Linear(6, 5), torch.rand(8, 6))
    compiled = torch.compile(qat, backend="aot_eager")
    compiled(torch.rand(8, 6))
    bad = torch.rand(8, 6)
    bad[3, 2] = float("nan")
    with pytest.raises(TrainingError, match="the activation 'input' has a NaN in it"):
        compiled(bad)
