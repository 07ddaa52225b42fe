"""`sensitivity` of models that run in Python, of which regions or layers become integers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import InputError, OctavoWarning, PlanError
from octavo.measuring.metrics import Likeness


class Net(nn.Module):
    """One graph, all of it in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Branching(Net):
    """No graph; its second half is called once or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body(x))
        return self.head(y) if y.sum() < 1e9 else y


class Boxes(Branching):
    """Returns as many rows as are high enough, as a detector does."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = super().forward(x)
        return {"kept": y[y[:, 0] > y[:, 0].mean()]}


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 6), torch.arange(16) % 4) for _ in range(count)]


def net(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@torch.no_grad()
def decibels(model: nn.Module, other: nn.Module) -> float:
    likeness = Likeness()
    for x, _ in batches():
        likeness.update(model(x), other(x))
    return likeness.sqnr_db


def sensitivity(model: nn.Module, **settings: object) -> octavo.Sensitivity:
    usual = {"calibration": batches(), "data": batches(), "target": octavo.host_target()}
    return octavo.sensitivity(model, **{**usual, **settings})


@pytest.mark.parametrize("exact", [True, False])
def test_a_region_that_is_all_of_the_model_gives_what_its_graph_gives(exact: bool) -> None:
    whole = sensitivity(net(Net), scope="model", exact=exact)
    region = sensitivity(net(Net), only=["body"], exact=exact)
    assert [layer.layer for layer in region.layers] == [layer.layer for layer in whole.layers]
    assert region.quantized_db == pytest.approx(whole.quantized_db, abs=0.5)
    for one, other in zip(region.layers, whole.layers, strict=True):
        for name, value in vars(other).items():
            want = value if not isinstance(value, float) else pytest.approx(value, abs=0.1)
            assert getattr(one, name) == want


def test_layers_of_regions_are_measured_while_the_whole_runs() -> None:
    model = net(Branching)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(OctavoWarning, match=r"cannot be captured.*layers of its regions"):
        found = sensitivity(model)
    assert {layer.layer for layer in found.layers} == {"body.0", "body.2", "body.4"} | {
        "head.0",
        "head.2",
    }
    q = octavo.quantize(model, calibration=batches(), scope="regions", target=octavo.host_target())
    oracle = octavo.lower(q, "reference")
    assert found.quantized_db == pytest.approx(decibels(model, oracle), abs=0.01)
    for layer in found.layers:
        assert layer.alone_db > found.quantized_db - 3
        assert layer.estimate_db == pytest.approx(layer.alone_db, abs=6)
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())


def test_a_layer_alone_is_that_layer_quantized_alone() -> None:
    model = net(Branching)
    found = sensitivity(model, scope="regions")
    mapping = octavo.QConfigMapping()
    for name in ("body.0", "body.2", "body.4", "head.2"):
        mapping.set_module_name(name, None)
    q = octavo.quantize(
        model,
        calibration=batches(),
        scope="regions",
        target=octavo.host_target(),
        qconfig=mapping,
        only=["head"],
    )
    oracle = octavo.lower(q, "reference")
    alone = next(layer.alone_db for layer in found.layers if layer.layer == "head.0")
    assert alone == pytest.approx(decibels(model, oracle), abs=0.5)


def test_outputs_of_other_shapes_have_the_metric_and_an_estimate() -> None:
    found = sensitivity(net(Boxes), scope="regions", metric=lambda outputs, labels: 7.0)
    assert found.float_metric == found.quantized_metric == 7
    assert all(layer.alone == 7 for layer in found.layers)
    assert all(layer.estimate_db > 0 for layer in found.layers)
    assert "alone" in str(found)


def test_modules_of_octavo_nn() -> None:
    model = net(Branching)
    found = sensitivity(model, scope="modules", calibration=None, mode="weight_only")
    assert {layer.layer for layer in found.layers} == {"body.0", "body.2", "body.4"} | {
        "head.0",
        "head.2",
    }
    one = octavo.quantize(model, scope="modules", mode="weight_only", only=["body.2"])
    layer = next(layer for layer in found.layers if layer.layer == "body.2")
    assert layer.alone_db == pytest.approx(decibels(model, one), abs=0.01)
    assert layer.estimate_db == pytest.approx(layer.alone_db, abs=6)


def test_a_model_that_is_one_layer() -> None:
    found = sensitivity(nn.Linear(6, 4), scope="modules", calibration=None)
    assert [layer.layer for layer in found.layers] == [""]
    assert found.layers[0].alone_db == found.quantized_db


def test_scopes_that_contradict() -> None:
    with pytest.raises(InputError, match='only= is for regions, and scope is "model"'):
        sensitivity(net(Net), scope="model", only=["body"])
    with pytest.raises(PlanError, match=r"only= names 'boby'.*did you mean 'body'"):
        sensitivity(net(Net), only=["boby"])


class Passing(nn.Module):
    """Passes by its only layer where the input is below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) if float(x.sum()) > 0 else x[:, :4]
        return result


@pytest.mark.parametrize("scope", ["regions", "modules"])
def test_a_batch_that_calls_no_part_adds_nothing_to_the_estimate(scope: str) -> None:
    torch.manual_seed(0)
    model, calling = Passing().eval(), torch.rand(4, 6)

    def estimates(data: list[Tensor]) -> list[float | None]:
        found = octavo.sensitivity(
            model,
            calling,
            calibration=None if scope == "modules" else [calling],
            data=data,
            scope=scope,
            exact=False,
            progress=False,
        )
        return [layer.estimate_db for layer in found.layers]

    assert estimates([calling, -calling]) == estimates([calling])
