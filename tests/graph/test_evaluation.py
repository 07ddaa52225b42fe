"""`evaluating`: evaluation mode inside, and each module's own mode outside, whatever happens."""

from __future__ import annotations

import pytest
from torch import nn

from octavo.graph.evaluation import evaluating, trained_inside


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_gets_its_own_mode_back(fails: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(4)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert [module.training for module in model.modules()] == before


def test_what_trains_in_a_model_that_does_not() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout(0.0), nn.BatchNorm1d(4), nn.Linear(4, 4))
    assert not trained_inside(model)  # all of it is in training mode
    model.training = False
    assert trained_inside(model) == ["0", "2"]
    assert not trained_inside(model.eval())
