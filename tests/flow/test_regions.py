"""`octavo.quantize` with regions: models that stay Python, with submodules that are graphs."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.errors import CalibrationError, CaptureError, InputError, OctavoWarning, PlanError
from octavo.model.parts import regions_of


def body(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 8, 3), nn.ReLU())


class Branching(nn.Module):
    """Asks a tensor's value, and so is no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = body()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 4 * 4, 16), nn.ReLU())
        self.out = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 5)])
        self.norm = nn.LayerNorm(5)
        self.threshold = 0.0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.head(self.backbone(x))
        return {"logits": self.norm(self.out[int(h.mean() > self.threshold)](h))}


def batches(count: int = 3, size: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3, size, size) for _ in range(count)]


def regions(model: nn.Module, **settings: object) -> nn.Module:
    settings = {"calibration": batches(), "target": octavo.host_target(), **settings}
    return octavo.quantize(model, scope="regions", **settings)


def near(a: Tensor, b: Tensor, decibels: float = 20) -> bool:
    return bool(20 * torch.log10(b.norm() / (a - b).norm()) > decibels)


def test_auto_falls_back_to_regions_and_says_why() -> None:
    model = Branching()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.warns(OctavoWarning, match=r"Branching cannot be captured.*'backbone'") as told:
        q = octavo.quantize(model, calibration=batches(), target=octavo.host_target())
    assert len(told) == 1
    assert type(q) is Branching
    assert not q.training
    assert model.training
    assert set(regions_of(q)) == {"backbone", "head", "out.1"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert near(q(batches()[1])["logits"], model.eval()(batches()[1])["logits"])


def test_what_can_be_captured_whole_is_the_same_as_ever() -> None:
    model = body().eval()
    one = octavo.quantize(model, calibration=batches())
    other = octavo.quantize(model, calibration=batches(), scope="model")
    assert one.plan == other.plan
    assert torch.equal(one(batches()[0]), other(batches()[0]))


def test_scope_model_is_an_error_where_the_whole_cannot_be_captured() -> None:
    with pytest.raises(CaptureError, match="Branching cannot be captured"):
        octavo.quantize(Branching(), calibration=batches(), scope="model")


def test_regions_equal_the_oracle_of_each_module() -> None:
    model = Branching().eval()
    q = regions(model)
    seen = list(batches())
    alone = octavo.quantize(model.backbone, calibration=seen, target=octavo.host_target())
    assert torch.equal(q.backbone(seen[0]), alone(seen[0]))
    assert q.backbone.plan == alone.plan


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_modes_without_data(mode: str) -> None:
    model = Branching().eval()
    x = batches()[0]
    q = octavo.quantize(model, x, mode=mode, scope="regions")
    assert set(regions_of(q)) == {"head", "out.1"}
    with torch.no_grad():
        assert near(q(x)["logits"], model(x)["logits"])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 6)
        self.right = self.left
        self.last = nn.Linear(6, 6)
        self.last.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.left(x)
        return self.last(self.right(y if y.sum() > 1e9 else torch.tanh(y)))


def test_shared_and_tied_modules_are_handled_once() -> None:
    model = Shared().eval()
    data = [torch.randn(8, 6)]
    q = octavo.quantize(model, calibration=data, target=octavo.host_target(), scope="regions")
    assert q.left is q.right
    assert set(regions_of(q)) == {"left", "last"}
    assert q.left.provenance["calibration_batches"] == 2  # it is called twice
    with torch.no_grad():
        assert near(q(data[0]), model(data[0]))


class Cached(nn.Module):
    """A decoder whose blocks write into an object that they are given."""

    class Cache:
        def __init__(self) -> None:
            self.keys: list[Tensor] = []

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key = nn.Linear(8, 8)
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x: Tensor, cache: Cached.Cache) -> Tensor:
            cache.keys.append(self.key(x))
            return x + self.mlp(torch.cat(cache.keys, 1).mean(1, keepdim=True).expand_as(x))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Cached.Block(), Cached.Block()])

    def forward(self, x: Tensor) -> Tensor:
        cache = Cached.Cache()
        for block in self.blocks:
            x = block(x, cache)
        return x


class Counting(nn.Module):
    """Its part keeps a count, and adds it."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.count = 0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.linear(x) + self.count

    def __init__(self) -> None:
        super().__init__()
        self.part = Counting.Part()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class InPlace(nn.Module):
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.mul_(2))

    def __init__(self) -> None:
        super().__init__()
        self.part = InPlace.Part()

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        return self.part(x) + x


class Looking(nn.Module):
    """Reads a weight of its submodule, and asks for its class."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.to(self.first.weight.dtype))
        if isinstance(self.second, nn.Linear):
            x = self.second(x)
        return self.third(x) * self.third.out_features


@pytest.mark.parametrize(
    ("model", "shape", "paths"),
    [
        (Cached(), (2, 3, 8), {f"blocks.{i}.{name}" for i in (0, 1) for name in ("key", "mlp")}),
        (Counting(), (4, 4), {"part.linear"}),
        (InPlace(), (4, 4), {"part.linear"}),
        (Looking(), (4, 4), {"third"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_is_more_than_a_function_stays_in_python(
    model: nn.Module, shape: tuple[int, ...], paths: set[str]
) -> None:
    data = [torch.randn(shape)]
    reference = copy.deepcopy(model).eval()
    q = octavo.quantize(
        model.eval(), calibration=data, target=octavo.host_target(), scope="regions"
    )
    assert set(regions_of(q)) == paths
    if not isinstance(model, Counting):
        with torch.no_grad():
            assert near(q(data[0]), reference(data[0]))


def test_results_that_are_dicts() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
            a = self.a(x)
            return OrderedDict(a=a, b=self.b(a))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = Features()

        def forward(self, x: list[Tensor]) -> list[Tensor]:
            out = list(self.features(torch.stack(x)).values())
            return [t[t > 0] for t in out]  # of a size that depends on values

    images = [torch.randn(3, 8, 8) for _ in range(2)]
    q = octavo.quantize(Net().eval(), calibration=[(images, [{}, {}])], scope="regions")
    assert set(regions_of(q)) == {"features"}
    assert len(q(images)) == 2


def test_only_picks_regions() -> None:
    q = regions(Branching(), only=["backbone"])
    assert set(regions_of(q)) == {"backbone"}
    by_rule = regions(Branching(), only=lambda path, module: isinstance(module, nn.Linear))
    assert set(regions_of(by_rule)) == {"head.1", "out.1"}


@pytest.mark.parametrize(
    ("only", "error", "message"),
    [
        (["bakcbone"], PlanError, r"no module is called so; did you mean 'backbone'"),
        (["out.0"], CalibrationError, r"the region 'out.0' never runs"),
        ("backbone", InputError, r"only is 'backbone': give paths of modules"),
        (lambda path, module: False, PlanError, "picks no module"),
        (["norm"], CaptureError, "no part can be a region"),
    ],
)
def test_only_that_cannot_be(only: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        regions(Branching(), only=only)


def test_scope_and_what_does_not_go_with_it() -> None:
    model = body()
    with pytest.raises(InputError, match="scope is '"):
        octavo.quantize(model, calibration=batches(), scope="whole")
    with pytest.raises(InputError, match='only= is for regions, and scope is "model"'):
        octavo.quantize(model, calibration=batches(), scope="model", only=["0"])
    with pytest.raises(InputError, match="input_scale"):
        octavo.quantize(model, calibration=batches(), scope="regions", input_mean=0.5)


def test_rules_name_modules_of_the_whole_model() -> None:
    keep = octavo.QConfigMapping().set_module_name("backbone.2", None)
    q = regions(Branching(), qconfig=keep)
    assert not q.backbone.plan.runs_int8("2")
    assert q.backbone.plan.runs_int8("0")
    regex = octavo.QConfigMapping().set_module_name_regex(r"backbone\.\d", None)
    assert set(regions_of(regions(Branching(), qconfig=regex))) == {"head", "out.1"}
    whole = (
        octavo.QConfigMapping()
        .set_global(None)
        .set_module_name("head", octavo.static_qconfig(octavo.host_target()))
    )
    assert set(regions_of(regions(Branching(), qconfig=whole))) == {"head"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.0", r"the rule for 'out.0' cannot be followed: the module stays in Python"),
        ("norm", r"stays in Python, outside of every region"),
        ("haed", r"no module is called 'haed', as a rule has it; did you mean 'head'"),
    ],
)
def test_rules_for_modules_that_stay_python(name: str, message: str) -> None:
    qconfig = octavo.static_qconfig(octavo.host_target())
    mapping = octavo.QConfigMapping().set_module_name(name, qconfig)
    with pytest.raises(PlanError, match=message):
        regions(Branching(), qconfig=mapping)


def test_a_rule_that_keeps_float_what_stays_in_python_is_fine() -> None:
    mapping = octavo.QConfigMapping().set_module_name("out.0", None)
    assert set(regions_of(regions(Branching(), qconfig=mapping))) == {"backbone", "head", "out.1"}


def test_a_call_of_another_structure_names_the_region() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Bilinear(4, 4, 4)
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if x.max() > -1e9 else x

    data = [torch.randn(2, 4)]
    q = octavo.quantize(Net(), calibration=data, scope="regions", target=octavo.host_target())
    with pytest.raises(InputError, match=r"the region 'linear' \(Linear\) was captured for other"):
        q(torch.randn(2, 5))


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x) if x.sum() < 1e9 else x
        return x


@pytest.mark.parametrize("first", [0, 1])
def test_processes_that_found_other_regions(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """They would wait for each other, or take each other's ranges for those of another region."""
    paths: list[str] = []

    def gathered(mine: list[str]) -> list[list[str]]:
        paths[:] = mine
        return [mine[first:], mine[1 - first :]]

    monkeypatch.setattr("octavo.flow.regions.gathered", gathered)
    monkeypatch.setattr("octavo.quantization.calibrate.gathered", lambda mine: ["", ""])
    with pytest.raises(CalibrationError, match=r"found different regions on their first batches"):
        regions(Parts(), calibration=[torch.randn(4, 4)], distributed=True)
    assert paths == [f"parts.{index}" for index in range(9)]  # in an order that all have


@pytest.mark.parametrize("fails", [True, False])
def test_what_fails_in_one_process_fails_in_all(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The others would wait for it in vain."""
    told: list[object] = []

    def gathered(mine: object) -> list[object]:
        told.append(mine)
        return [mine, "" if fails or len(told) < 2 else "calibration batch 7: it is damaged"]

    monkeypatch.setattr("octavo.quantization.calibrate.gathered", gathered)
    monkeypatch.setattr("octavo.flow.regions.gathered", lambda mine: [mine, mine])
    good = torch.randn(4, 4)
    data = [good, good, torch.randn(4, 5)] if fails else [good] * 3
    message = "calibration batch 2: " if fails else "process 1 could not calibrate: c"
    with pytest.raises(CalibrationError, match=message):
        octavo.quantize(Parts(), calibration=data, distributed=True, scope="regions")
    assert len(told) == 2
    assert ("calibration batch 2" in str(told[1])) == fails


def test_in_training_it_is_told_that_gradients_end_at_a_region() -> None:
    q = regions(Branching())
    x = batches()[0].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q(x)
        q.train()(x.detach())
    with pytest.warns(
        OctavoWarning, match=r"no gradient goes through the region 'backbone'"
    ) as told:
        q(x)
    assert {warning.filename for warning in told} == {__file__}


def test_a_model_that_is_run_otherwise_than_by_a_call() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = body()

        def encode(self, x: Tensor) -> Tensor:
            return self.layers(x)

    q = octavo.quantize(Encoder(), calibration=batches(), run=lambda model, x: model.encode(x))
    assert set(regions_of(q)) == {"layers"}
    assert q.encode(batches()[0]).shape == (4, 8, 4, 4)


def test_a_model_that_does_not_run_on_the_data() -> None:
    with pytest.raises(CalibrationError, match="the first batches: the model cannot be called so"):
        regions(Branching(), calibration=[torch.randn(2, 5)])


def test_generators_are_read_once() -> None:
    q = regions(Branching(), calibration=iter(batches(5)))
    assert q.backbone.provenance["calibration_batches"] == 5


def test_copies_pickles_and_state_dicts() -> None:
    q = regions(Branching())
    x = batches()[0]
    expected = q(x)["logits"]
    assert torch.equal(copy.deepcopy(q)(x)["logits"], expected)
    again = pickle.loads(pickle.dumps(q))  # noqa: S301
    assert torch.equal(again(x)["logits"], expected)
    other = regions(Branching())
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(x)["logits"], expected)
    assert torch.equal(q.train().eval().to("cpu")(x)["logits"], expected)


def test_a_model_without_a_region() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"Net cannot be captured.*And no submodule"):
        octavo.quantize(Net(), calibration=batches())


def test_plain_attributes_are_kept() -> None:
    class Body(nn.Sequential):
        kind = "body"

        def __init__(self) -> None:
            super().__init__(*body())
            self.out_channels = 8

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * self.body.out_channels if x.sum() < 1e9 else x

    q = regions(Net())
    assert set(regions_of(q)) == {"body"}
    assert (q.body.out_channels, q.body.kind) == (8, "body")
    with pytest.raises(AttributeError, match=r"'body' \(Body\) is a graph, which has no 'weight'"):
        _ = q.body.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regions(Net())


@pytest.mark.parametrize("name", ["check", "samples", "runtime", "precision", "target"])
def test_attributes_that_a_region_has_of_its_own(name: str) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            setattr(self, name, None)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x)
            return result

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return y if getattr(self.body, name) is None and y.sum() < 1e9 else y * 100

    x = torch.randn(8, 4)
    q = regions(Net(), calibration=[x])
    assert set(regions_of(q)) == {"body.linear"}
    with torch.no_grad():
        assert near(q(x), q.body.linear(x))


def test_what_a_region_holds_of_its_own_is_declared() -> None:
    q = octavo.quantize(nn.Linear(4, 4), torch.randn(2, 4))
    own = {name for name in vars(q).keys() - vars(nn.Module()).keys() if name[0] != "_"}
    assert own == set(type(q).__annotations__)


def test_scope_modules_needs_neither_data_nor_a_graph() -> None:
    q = octavo.quantize(Branching(), scope="modules", only=["head"])
    assert type(q) is Branching
    assert [p for p, m in q.named_modules() if isinstance(m, octavo.nn.QuantizedModule)] == [
        "head.1"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "bfloat16"),
        ("run", lambda model, batch: model(batch)),
        ("distributed", True),
    ],
)
def test_scope_modules_refuses_what_it_has_no_use_for(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f'{name}= is for graphs, and scope="modules" makes none'):
        octavo.quantize(Branching(), scope="modules", **{name: value})


def test_a_rule_may_leave_all_of_a_graph_in_float_by_its_layers_names() -> None:
    rule = octavo.QConfigMapping().set_module_name("out.1.linear", None)
    assert set(regions_of(regions(Branching(), qconfig=rule))) == {"backbone", "head"}


class Streaming(nn.Module):
    """Goes on where its last call ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(16, 32), nn.Linear(32, 4)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.cell(x, self.state)
        scores: Tensor = self.head(self.state)
        return scores


def test_what_forward_keeps_between_calls_stays_in_python_and_begins_as_it_was() -> None:
    torch.manual_seed(0)
    model, steps = Streaming().eval(), [torch.randn(4, 16) for _ in range(4)]
    with pytest.warns(OctavoWarning, match="Streaming keeps in state what its next call"):
        q = octavo.quantize(model, calibration=steps)
    assert set(regions_of(q)) == {"head"}  # the cell is called without a state, and with one
    assert (model.state, q.state) == (None, None)
    with torch.no_grad():
        assert all(near(q(x), model(x), 25) for x in steps)
