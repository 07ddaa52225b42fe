"""Averages of a model in training over its steps: weights, scales and ranges travel together."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torchvision_shim  # noqa: F401  (before timm)
from capturing import traced_as
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import octavo
from octavo.errors import PlanError
from octavo.graph.capture.capture import traced
from octavo.graph.graph import Graph
from octavo.qat import ObservedFakeQuantize, QATModel

DECAY, STEPS = 0.75, 6


@cache
def captured() -> tuple[nn.Module, Tensor, Graph]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(288, 5)
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    return net, x, traced(net, x)


def prepared(*, learned: bool = False) -> QATModel:
    """It has seen nothing, unless scales are learned."""
    net, x, graph = captured()
    data = [x] if learned else None
    with traced_as(graph):
        return octavo.prepare_qat(net, x, calibration=data, learned_scales=learned, progress=False)


def averages(qat: QATModel) -> dict[str, Any]:
    """name -> (module that averages, how it is told of a step)."""
    timm_ema = pytest.importorskip("timm.utils.model_ema")
    exponential = get_ema_multi_avg_fn(DECAY)
    torch_models = {
        "averaged": AveragedModel(qat, multi_avg_fn=exponential, use_buffers=True),
        "averaged, buffers copied": AveragedModel(qat, multi_avg_fn=exponential),
        "swa": AveragedModel(qat, use_buffers=True),
    }
    timm_models = {
        "timm v2": timm_ema.ModelEmaV2(qat, decay=DECAY),
        "timm v3": timm_ema.ModelEmaV3(qat, decay=DECAY),
    }
    told = {name: (module, module.update_parameters) for name, module in torch_models.items()}
    return told | {name: (module, module.update) for name, module in timm_models.items()}


def weights_of_steps(name: str) -> tuple[float, list[float]]:
    """What part of the average the first state has, and the state after each step."""
    if name == "swa":
        return 0.0, [1 / STEPS] * STEPS
    powers = [DECAY ** (STEPS - 1 - step) for step in range(STEPS)]
    weights = [(1 - DECAY) * power for power in powers]
    if name.startswith("averaged"):  # the first step is copied
        return 0.0, [powers[0], *weights[1:]]
    return DECAY**STEPS, weights


@pytest.mark.parametrize("learned", [False, True], ids=["observed", "learned"])
@pytest.mark.parametrize(
    "name", ["averaged", "averaged, buffers copied", "swa", "timm v2", "timm v3"]
)
def test_the_average_converts_with_its_own_weights_and_ranges(name: str, learned: bool) -> None:
    qat = prepared(learned=learned)
    module, tell = averages(qat)[name]
    states = [copy.deepcopy(qat.state_dict())]
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)
    torch.manual_seed(1)
    for _ in range(STEPS):
        loss = qat(torch.randn(4, 3, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tell(qat)
        states.append(copy.deepcopy(qat.state_dict()))
    first, rest = weights_of_steps(name)

    def mean(key: str) -> Tensor:
        return sum(w * s[key] for w, s in zip([first, *rest], states, strict=True))  # type: ignore[return-value]

    inner = module.module.eval()
    torch.testing.assert_close(inner.get_parameter("4.weight").detach(), mean("4.weight"))
    for path, part in inner.named_modules():
        if isinstance(part, ObservedFakeQuantize):
            share = mean(f"{path}.share")
            low, high = (mean(f"{path}.{end}") / share for end in ("low", "high"))
            if name == "averaged, buffers copied":
                low, high = states[-1][f"{path}.low"], states[-1][f"{path}.high"]
            expected = octavo.numerics.affine.qparams_of_range(low, high, part.scheme)
            torch.testing.assert_close(part.qparams().scale, expected.scale)
    if learned:
        zero_points = {
            n: int(p.zero_point) for n, p in qat.qparams().items() if not p.zero_point.dim()
        }
        found = {n: int(p.zero_point) for n, p in inner.qparams().items() if not p.zero_point.dim()}
        assert found == zero_points
    q = octavo.convert(module).lower("reference")
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(q(x), module(x))
        assert not torch.equal(q(x), qat.eval()(x))


class Softmax(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x).softmax(1)
        return result


def test_what_does_more_than_call_the_model_is_not_converted() -> None:
    qat = prepared()
    x = torch.randn(4, 3, 8, 8)
    qat(x)
    wrapped = nn.DataParallel(qat)
    with torch.no_grad():
        assert torch.equal(octavo.convert(wrapped).lower("reference")(x), qat.eval()(x))
    with pytest.raises(PlanError, match=r"Softmax may do more .* octavo\.convert\(model\.module\)"):
        octavo.convert(Softmax(qat))
    with pytest.raises(PlanError, match=r"Linear is not a model from .*octavo\.quantize\(model"):
        octavo.convert(nn.Linear(3, 4))
