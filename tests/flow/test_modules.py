"""Layers that become integers one by one, in models that run as they are written."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import octavo
from octavo.errors import NothingQuantized, OctavoWarning, PlanError
from octavo.flow.modules import quantize_modules, quantized_modules
from octavo.flow.settings import Settings


class Loops(nn.Module):
    """A model that cannot be captured: its depth depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(40, 32), nn.Linear(32, 32)
        self.norm, self.lstm = nn.LayerNorm(32), nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        while x.norm() < 100:
            x = x * 2 + self.layer(x)
        result: Tensor = self.head(self.norm(self.lstm(x)[0]))
        return result


class Tied(Loops):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.table.weight


def far(exact: Tensor, other: Tensor) -> float:
    return float((exact - other).norm() / exact.norm())


def size(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getbuffer().nbytes


def by_modules(model: nn.Module, **settings: Any) -> nn.Module:
    q = octavo.quantize(model, scope="modules", **settings)
    assert isinstance(q, nn.Module)
    return q


IDS = torch.arange(24).reshape(4, 6)


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_a_model_that_cannot_be_captured(mode: str) -> None:
    torch.manual_seed(0)
    model = Loops().eval()
    with pytest.raises(octavo.OctavoError):
        octavo.quantize(model, IDS, mode=mode, progress=False, scope="model")
    q = by_modules(model, mode=mode)
    assert type(q) is Loops
    kinds = {path: type(module) for path, module in q.named_children()}
    assert kinds == {
        "table": octavo.nn.Embedding,
        "layer": octavo.nn.Linear,
        "norm": nn.LayerNorm,
        "lstm": octavo.nn.LSTM,
        "head": octavo.nn.Linear,
    }
    assert isinstance(model.layer, nn.Linear)  # the user's model stays
    assert far(model(IDS), q(IDS)) < 0.05
    assert size(q) < 0.45 * size(model)
    assert torch.equal(copy.deepcopy(q)(IDS), q(IDS))
    other = by_modules(Loops().eval(), mode=mode)
    other.load_state_dict(q.state_dict())
    assert torch.equal(other(IDS), q(IDS))


def test_tied_layers_hold_one_table() -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    q = by_modules(model, mode="weight_only")
    assert far(model(IDS), q(IDS)) < 0.05
    state = q.state_dict()
    assert state["head.weight"].data_ptr() == state["table.weight"].data_ptr()
    assert size(q) < 0.5 * size(model)
    again = copy.deepcopy(q).state_dict()
    assert again["head.weight"].data_ptr() == again["table.weight"].data_ptr()


def rules(**of: object) -> octavo.QConfigMapping:
    mapping = octavo.QConfigMapping()
    for path, qconfig in of.items():
        mapping.set_module_name(path, qconfig)  # type: ignore[arg-type]
    return mapping


def test_tied_layers_stay_float_where_one_of_them_has_to() -> None:
    model = Tied().eval()
    replaced = quantized_modules(model, Settings(mode="weight_only", mapping=rules(table=None)))
    assert "both do, since the weight would be held twice" in replaced.notes[0]
    assert set(replaced.modules) == {"layer", "lstm"}
    assert replaced.left["head"] == "it shares its weight with 'table', which stays float"
    assert replaced.model.head.weight is replaced.model.table.weight  # type: ignore[union-attr]


def test_rules_by_name_class_operator_and_regex() -> None:
    model, int4 = Loops().eval(), octavo.weight_only_qconfig(4, group_size=16)
    mapping = (
        octavo.QConfigMapping()
        .set_object_type(nn.LSTM, None)
        .set_object_type("linear", octavo.dynamic_qconfig())
        .set_module_name_regex("he.*", int4)
        .set_module_name("table", None)
    )
    q = quantized_modules(model, Settings(mode="weight_only", mapping=mapping))
    assert {path: module.runs for path, module in q.modules.items()} == {  # type: ignore[union-attr]
        "layer": "dynamic",
        "head": "weight_only",
    }
    assert q.model.head.state_dict()["weight"].numel() == 32 * 40 // 2  # type: ignore[union-attr]
    assert q.left["lstm"] == "the rule op type 'torch.nn.modules.rnn.LSTM'"
    assert q.left["table"] == "the rule module name 'table'"


@pytest.mark.parametrize(
    "only", [["layer", "head"], lambda path, module: isinstance(module, nn.Linear)]
)
def test_only_some(only: list[str] | Callable[[str, nn.Module], bool]) -> None:
    q = quantized_modules(Loops().eval(), Settings(only=only))
    assert set(q.modules) == {"layer", "head"}
    assert q.left["lstm"] == "it is not among those of only="


def test_the_model_itself_is_named_by_an_empty_path() -> None:
    assert set(quantized_modules(Loops().eval(), Settings(only=[""])).modules) == {
        *("table", "layer", "lstm", "head")
    }


def test_a_shared_module_is_replaced_once() -> None:
    layer = nn.Linear(8, 8)
    q = by_modules(nn.Sequential(layer, nn.ReLU(), layer))
    assert isinstance(q, nn.Sequential)
    assert q[0] is q[2]
    assert isinstance(q[0], octavo.nn.Linear)


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Named(nn.Linear):
    """Computes what its base does."""


def test_what_derives_from_a_layer() -> None:
    q = quantized_modules(nn.Sequential(Named(8, 8), Scaled(8, 8)), Settings())
    assert set(q.modules) == {"0"}
    assert "has a forward of its own" in q.left["1"]


def test_computed_weights_stay_float_and_it_is_said() -> None:
    layers = [nn.Linear(8, 8) for _ in range(4)]
    nn.utils.parametrizations.weight_norm(layers[0])
    prune.l1_unstructured(layers[1], "weight", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layers[2])
    with pytest.warns(OctavoWarning, match="stay float: its weight is computed") as said:
        q = by_modules(nn.Sequential(*layers))
    (told,) = [str(w.message) for w in said if "computed" in str(w.message)]
    assert told.startswith("'0', '1', '2' stay float: its weight")
    assert [isinstance(m, octavo.nn.Linear) for m in q.children()] == [False, False, False, True]
    assert q(torch.randn(2, 8)).shape == (2, 8)


def test_hooks_stay() -> None:
    model, seen = nn.Sequential(nn.Linear(4, 4)), []
    model[0].register_forward_hook(lambda *args: seen.append("after"))
    model[0].register_forward_pre_hook(lambda *args, **kw: seen.append("before"), with_kwargs=True)
    by_modules(model)(torch.rand(2, 4))
    assert seen == ["before", "after"]


def test_torchs_own_transformer() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    x = torch.randn(2, 7, 32)
    q = by_modules(model)
    seen: list[Tensor] = []
    q.layers[0].linear1.register_forward_hook(lambda module, args, result: seen.append(result))  # type: ignore[union-attr,index]
    with torch.no_grad():
        assert far(model(x), q(x)) < 0.03
    assert [tuple(t.shape) for t in seen] == [(2, 7, 64)]


def test_a_small_share_is_told() -> None:
    with pytest.warns(
        OctavoWarning, match="only 10% of the weights are integers now; float: Conv2d"
    ):
        by_modules(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8)))


def test_layers_that_no_group_fits_are_told_of_once_and_which_size_does() -> None:
    model = nn.Sequential(*(nn.Linear(48, 48) for _ in range(5)), nn.Linear(48, 50))
    model.append(nn.Linear(50, 64)).append(nn.Linear(64, 4))
    with pytest.warns(OctavoWarning) as said:
        octavo.quantize(
            model, mode="weight_only", qconfig=octavo.weight_only_qconfig(4, group_size=32)
        )
    told = "group_size 32 does not divide its weight of shape"
    assert [str(w.message) for w in said] == [
        f"'0', '1', '2' and 2 more stay float: {told} [48, 48]; group_size=16 does",
        f"'5' stays float: {told} [50, 48]; group_size=16 does",
        f"'6' stays float: {told} [64, 50]",
        "only 1% of the weights are integers now; float: Linear 99%",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qconfig": rules(laier=None)}, "no module is called 'laier'.*did you mean 'layer'"),
        ({"qconfig": rules(layer=torch.bfloat16)}, "which needs a graph"),
        ({"mode": "static"}, "one of 'dynamic' and 'weight_only'"),
        ({"mode": "none"}, "mode is 'none'"),
        ({"target": "z80"}, "unknown target 'z80'"),
        ({"only": ["heads"]}, "only= names 'heads'.*did you mean 'head'"),
    ],
)
def test_mistakes_name_the_way_out(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        by_modules(Loops().eval(), **arguments)  # type: ignore[arg-type]


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(NothingQuantized, match="has no layer with weights"):
        by_modules(nn.Sequential(nn.ReLU()))
    with pytest.raises(NothingQuantized, match=r"'1': .*has no such layer"):
        by_modules(nn.Sequential(nn.BatchNorm1d(3), nn.Bilinear(2, 2, 2)))
    with pytest.raises(NothingQuantized, match="has quantized layers already"):
        quantize_modules(by_modules(nn.Sequential(nn.Linear(4, 4))), Settings())


def test_a_rule_that_matches_nothing_is_told() -> None:
    mapping = octavo.QConfigMapping().set_object_type(nn.GRU, None)
    with pytest.warns(OctavoWarning, match="rules that match no module"):
        by_modules(nn.Sequential(nn.Linear(4, 4)), qconfig=mapping)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


def test_a_shared_layer_is_found_by_each_of_its_names() -> None:
    for name in ("first", "second"):
        q = octavo.quantize(Twice(), scope="modules", only=[name])
        assert [type(m) for m in (q.first, q.last)] == [octavo.nn.Linear, nn.Linear]
        assert q.first is q.second
        left = octavo.QConfigMapping().set_module_name(name, None)
        q = octavo.quantize(Twice(), scope="modules", qconfig=left)
        assert [type(m) for m in (q.first, q.last)] == [nn.Linear, octavo.nn.Linear]


def test_warnings_are_of_the_line_that_called() -> None:
    mapping = octavo.QConfigMapping().set_object_type("lstm", octavo.dynamic_qconfig())
    with pytest.warns(octavo.OctavoWarning, match="match no module") as told:
        octavo.quantize(Twice(), scope="modules", qconfig=mapping)
    assert [warning.filename for warning in told] == [__file__]


class TiedPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


def test_tied_layers_see_what_is_loaded_into_one_of_them() -> None:
    q, other = (octavo.quantize(TiedPair(), scope="modules", mode="weight_only") for _ in range(2))
    ids = torch.arange(16)[None]
    q(ids)  # kernels have the old weights now
    expected = other(ids)
    q.table.load_state_dict(other.table.state_dict())
    assert torch.equal(q(ids), expected)


def test_a_forward_that_was_replaced_in_the_instance_stays() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).eval()
    plain = net[0].forward
    net[0].forward = lambda x: 3 * plain(x)
    x = torch.randn(4, 16)
    expected = net(x)
    with pytest.warns(OctavoWarning, match="'0' stays float: its forward was replaced"):
        q = octavo.quantize(net, mode="weight_only", scope="modules")
    assert type(q[0]) is nn.Linear
    assert type(q[1]) is octavo.nn.Linear
    assert ((q(x) - expected).norm() / expected.norm()) < 0.02  # some 0.66 without the factor
