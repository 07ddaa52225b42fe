"""What the tests of LiteRT share: models that it runs beside the oracle, and those it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from litert_models import SHARE, Run, run
from torch import Tensor, nn

import octavo
from octavo.errors import ExportError


@pytest.fixture
def agrees() -> Callable[..., Run]:
    """Runs a model, each of whose layers has to give the oracle's integers; gives the run."""

    def check(model: nn.Module, *tensors: Tensor, share: float = SHARE, **how: object) -> Run:
        torch.manual_seed(0)
        done = run(model, *tensors, **how)
        assert done.layers
        far = [
            layer
            for layer in done.layers
            if (layer.unequal > share or (layer.steps or 0) > 1 or layer.sqnr_db < 40)
        ]
        assert far == []
        return done

    return check


@pytest.fixture
def litert() -> Callable[..., Run]:
    """Runs a model."""
    return run


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Why a model has no LiteRT form."""
    pytest.importorskip("ai_edge_litert")

    def refused(model: nn.Module, *tensors: Tensor, **how: object) -> str:
        from octavo.runtimes.litert.export import to_tflite

        how = {"calibration": [tensors], "target": "edge", "progress": False, **how}
        q = octavo.quantize(model.eval(), tensors, **how)
        with pytest.raises(ExportError) as caught:
            to_tflite(q.graph)
        return str(caught.value)

    return refused
