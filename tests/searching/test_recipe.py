"""Searching a model with regions, while the rest of it runs in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from looking import Looking
from torch import Tensor, nn

import octavo
from octavo.errors import InputError, OctavoWarning
from octavo.measuring.regions import plan_of
from octavo.model.parts import regions_of
from octavo.searching import recipe
from octavo.searching.layer_times import LayerTime


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "layer_times", lambda q, tensors, budget_s: ())


def net() -> nn.Module:
    torch.manual_seed(0)
    return Looking().eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Labels are what the network says."""
    chance = torch.Generator().manual_seed(1)
    images = [torch.randn(32, 6, generator=chance) for _ in range(3)]
    model = net()
    with torch.no_grad():
        return [(x, model(x).argmax(1)) for x in images]


def search(**changes: object) -> octavo.SearchResult:
    data = batches()
    settings = {"calibration": data, "data": data, "target": octavo.host_target()}
    return octavo.search(net(), **{**settings, "scope": "regions", "max_drop": 5.0, **changes})


@pytest.mark.sweep
def test_a_model_with_regions_is_found_and_kept(tmp_path: Path) -> None:
    found = search(checkpoint=tmp_path / "s")
    assert found.complete
    assert type(found.model) is Looking
    best = found.best
    assert best is not None
    assert best.drop is not None
    assert best.drop <= 5
    assert (found.trials[0].int8, found.trials[0].layers) == (4, 4)
    with torch.no_grad():
        right = [found.model(x).argmax(1) == y for x, y in batches()]
    assert 100 * float(torch.cat(right).float().mean()) == pytest.approx(best.metric)
    kept = octavo.load(tmp_path / "s" / "best.octavo", into=net())
    x = batches()[0][0]
    with torch.no_grad():
        assert torch.equal(kept(x), found.model(x))
    again = search(checkpoint=tmp_path / "s")
    assert again.trials == found.trials
    with torch.no_grad():
        assert torch.equal(again.model(x), found.model(x))


@pytest.mark.sweep
def test_layers_in_float_are_those_that_hurt_the_whole() -> None:
    ranked = octavo.sensitivity(
        net(),
        calibration=batches(),
        data=batches(),
        scope="regions",
        exact=False,
        target=octavo.host_target(),
    )
    order = [layer.layer for layer in ranked.layers]
    hurts = order[1]

    def right(model: nn.Module) -> float:
        """Only where that layer is in float."""
        graphs = regions_of(model)
        return float(not graphs or not plan_of(graphs).reads_integers(hurts))

    found = search(evaluate=right, data=None, max_drop=0.5)
    tried = [trial.in_float for trial in found.trials if trial.in_float]
    assert tried[:2] == [(order[0],), tuple(order[:2])]
    assert found.best is not None
    assert hurts in found.best.in_float
    assert not plan_of(regions_of(found.model)).reads_integers(hurts)


def test_regions_are_searched_where_the_whole_cannot_be_captured() -> None:
    with pytest.warns(
        OctavoWarning, match="cannot be captured.*its regions are searched: body, head"
    ):
        found = search(scope="auto")
    assert type(found.model) is Looking


class Either(nn.Module):
    """One of two layers, by the sign of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.up(x) if float(x.sum()) > 0 else self.down(x)
        return result


@pytest.mark.sweep
def test_layers_are_timed_where_the_example_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls one region of two; the time is for all that are called together."""
    budgets = []

    def timed(q: octavo.QuantizedModel, tensors: list[Tensor], budget_s: float) -> object:
        budgets.append(budget_s)
        (layer,) = (node.name for node in q.graph.nodes if node.short_op == "linear")
        return (LayerTime(layer, 1.0, 2.0, 2.0),)

    monkeypatch.setattr(recipe, "layer_times", timed)
    data = [torch.ones(4, 6), -torch.ones(4, 6)]
    found = octavo.search(
        Either().eval(),
        calibration=data,
        evaluate=lambda model: 100.0,
        max_drop=1.0,
        target=octavo.host_target(),
        scope="regions",
        progress=False,
    )
    assert found.layer_times is not None
    assert [time.layer.split(".")[0] for time in found.layer_times] == ["up"]
    assert budgets == [recipe.BUDGET_S]


def test_what_cannot_be_searched() -> None:
    with pytest.raises(InputError, match="train= is for a model that is one graph"):
        search(train=lambda qat: None)
    with pytest.raises(InputError, match='scope="modules" is not searched'):
        search(scope="modules")
