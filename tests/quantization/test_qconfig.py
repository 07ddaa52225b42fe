"""What a user writes: specs, rules, and which of the rules decides."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.errors import PlanError
from octavo.graph.graph import Node
from octavo.numerics.observers import MinMax, MovingAverageMinMax
from octavo.numerics.scheme import Scheme
from octavo.quantization.qconfig import QConfig, QConfigMapping, QSpec


def qconfig(constant: float) -> QConfig:
    """A qconfig that can be told from others."""
    spec = QSpec(Scheme("uint8"), MovingAverageMinMax(constant))
    return QConfig(spec, QSpec(Scheme("int8", symmetric=True, channel_axis=0), MinMax()))


A, B, C, D = (qconfig(constant) for constant in (0.1, 0.2, 0.3, 0.4))


def layer(name: str = "layer1.0.conv1", op: str = "aten.conv2d.default", **kwargs: str) -> Node:
    kind = kwargs.get("module_type", "torch.nn.modules.conv.Conv2d")
    return Node(name, op, module=kwargs.get("module", name), module_type=kind)


@pytest.mark.parametrize(
    "spec",
    [
        QSpec(
            Scheme("int8", True, 1, narrow_range=True, reduce_range=True), MovingAverageMinMax(0.5)
        ),
        QSpec(Scheme("uint8", reduce_range=True), MinMax()),
    ],
    ids=str,
)
def test_a_spec_round_trips_as_a_dict(spec: QSpec) -> None:
    assert QSpec.from_dict(spec.to_dict()) == spec
    assert str(spec) == str(spec.scheme)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int9"}, "unknown quantized dtype 'int9'"),
        ({"observer": "max"}, "unknown observer 'max'"),
        ({"bits": 4}, "does not take"),
    ],
)
def test_a_spec_with_unknown_settings_is_an_error(change: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        QSpec.from_dict(QSpec(Scheme(), MinMax()).to_dict() | change)


def decided(mapping: QConfigMapping, node: Node) -> QConfig | str | None:
    rule = mapping.rule_for(node)
    return "default" if rule is None else rule.precision


def test_without_a_rule_the_default_holds() -> None:
    assert decided(QConfigMapping(), layer()) == "default"
    assert decided(QConfigMapping().set_module_name("fc", A), layer()) == "default"


def test_the_most_specific_rule_decides_in_whatever_order_they_were_set() -> None:
    setters: list[Any] = [
        lambda m: m.set_module_name("layer1", A),
        lambda m: m.set_module_name_regex(r"layer1\..*", B),
        lambda m: m.set_object_type(nn.Conv2d, C),
        lambda m: m.set_global(D),
    ]
    while setters:
        for order in (setters, setters[::-1]):
            mapping = QConfigMapping()
            for set_rule in order:
                assert set_rule(mapping) is mapping
            expected = {4: A, 3: B, 2: C, 1: D}[len(setters)]
            assert decided(mapping, layer()) is expected
        setters = setters[1:]


def test_the_longest_name_then_the_last_rule_decides() -> None:
    mapping = QConfigMapping().set_module_name("layer1.0", A).set_module_name("layer1", B)
    assert decided(mapping, layer()) is A
    assert decided(mapping, layer("layer1.1.conv1")) is B
    assert decided(mapping.set_module_name("layer1.0", C), layer()) is C
    assert decided(mapping.set_global(C).set_global(D), layer("fc")) is D


def test_none_keeps_float() -> None:
    mapping = QConfigMapping().set_global(A).set_module_name("layer1", None)
    assert decided(mapping, layer()) is None
    assert decided(mapping, layer("layer2.0.conv1")) is A


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("layer1", True),
        ("layer1.0", True),
        ("layer1.0.conv1", True),
        ("layer", False),
        ("layer1.", False),
        ("layer1.0.conv", False),
        ("layer1.0.conv1.weight", False),
        ("conv1", False),
        ("", False),
    ],
)
def test_a_module_name_stands_for_all_inside_it(name: str, matches: bool) -> None:
    assert (QConfigMapping().set_module_name(name, A).rule_for(layer()) is not None) == matches


def test_a_functional_call_is_found_by_its_own_name_and_by_its_module() -> None:
    add = layer("layer1.0.add", "aten.add.Tensor", module="layer1.0", module_type="Block")
    for name in ("layer1.0.add", "layer1.0", "layer1"):
        assert decided(QConfigMapping().set_module_name(name, A), add) is A


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        (r".*conv\d", True),
        (r"layer[12]\.\d\.conv1", True),
        ("conv1", False),  # the whole path has to match
        ("layer1", False),
    ],
)
def test_a_regex_matches_the_whole_path(pattern: str, matches: bool) -> None:
    mapping = QConfigMapping().set_module_name_regex(pattern, A)
    assert (mapping.rule_for(layer()) is not None) == matches


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        ("conv2d", layer()),
        ("aten.conv2d.default", layer()),
        (nn.Conv2d, layer()),
        (F.conv2d, layer()),
        (torch.add, layer(op="aten.add.Tensor", module_type="Block")),
        (operator.add, layer(op="aten.add.Tensor", module_type="Block")),
        (F.relu, layer(op="aten.relu.default", module_type="")),
        (nn.ReLU6, layer(op="aten.hardtanh.default", module_type=f"{nn.ReLU6.__module__}.ReLU6")),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_an_operator_is_named_in_many_ways(kind: Any, node: Node) -> None:
    mapping = QConfigMapping().set_object_type(kind, A)
    assert decided(mapping, node) is A
    assert decided(mapping, layer(op="aten.linear.default", module_type="")) == "default"


@pytest.mark.parametrize(
    ("set_rule", "message"),
    [
        (lambda m: m.set_module_name_regex("layer[", A), r"'layer\[' is not a regular expression"),
        (lambda m: m.set_object_type(5, A), "an object type is a name, a class or a function"),
        (lambda m: m.set_global("int8"), "the qconfig for global '' is a str; give a QConfig, t"),
        (lambda m: m.set_global(torch.float16), "global .. asks for torch.float16: layers compute"),
        (lambda m: m.set_module_name("fc", A.weight), "for module name 'fc' is a QSpec; give a QC"),
    ],
)
def test_mistakes_are_found_when_a_rule_is_set(set_rule: Any, message: str) -> None:
    mapping = QConfigMapping()
    with pytest.raises(PlanError, match=message):
        set_rule(mapping)
    assert not mapping.rules


def test_rules_read_as_words() -> None:
    mapping = QConfigMapping().set_global(A).set_object_type(nn.Linear, None)
    mapping.set_module_name("fc", B).set_module_name_regex(".*", C)
    assert [str(rule) for rule in mapping.rules] == [
        "global",
        "op type 'torch.nn.modules.linear.Linear'",
        "module name 'fc'",
        "module name regex '.*'",
    ]


def test_the_mode_of_a_qconfig_follows_from_its_activation():
    weight = QSpec(Scheme("int8", symmetric=True, channel_axis=0), MinMax())
    assert QConfig(QSpec(Scheme(), MinMax()), weight).mode == "static"
    assert QConfig(QSpec(Scheme()), weight).mode == "dynamic"
    assert QConfig(None, weight).mode == "weight_only"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QSpec(Scheme(per_token=True), MinMax()), "found at run time: leave out the obser"),
        (lambda: QSpec(Scheme(channel_axis=1)), "per tensor or per token, not per-channel"),
        (lambda: QSpec(Scheme(group_size=4)), "per tensor or per token, not per-group-of-4"),
        (lambda: QConfig(None, QSpec(Scheme("int8"))), "give its QSpec an observer"),
        (
            lambda: QConfig(QSpec(Scheme(group_size=4), MinMax()), QSpec(Scheme(), MinMax())),
            "group_size is for weights",
        ),
    ],
)
def test_what_does_not_go_together_is_an_error(make, message):
    with pytest.raises(PlanError, match=message):
        make()


def test_a_dynamic_spec_round_trips():
    spec = QSpec(Scheme(per_token=True))
    assert QSpec.from_dict(spec.to_dict()) == spec
    assert str(spec) == "uint8 per-token affine, dynamic"
