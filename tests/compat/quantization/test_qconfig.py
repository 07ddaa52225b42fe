"""What qconfigs come to in Octavo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization as theirs
from torch import nn

import octavo
import octavo.compat.quantization as ours
from octavo.compat.quantization.backends import BACKENDS
from octavo.compat.quantization.qconfig import common_target, native
from octavo.errors import OctavoWarning
from octavo.numerics.observers import PairSum


def as_theirs(qconfig: Any) -> str:
    """What it prints as, with the paths of torch.ao."""
    return repr(qconfig).replace("octavo.compat.", "torch.ao.")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_defaults_print_as_torch_prints_them(backend: str) -> None:
    assert as_theirs(ours.get_default_qconfig(backend)) == repr(theirs.get_default_qconfig(backend))
    for version in (0, 1):
        made = ours.get_default_qat_qconfig(backend, version)
        wanted = theirs.get_default_qat_qconfig(backend, version)
        assert set(vars(made.weight.partial)) == set(vars(wanted.weight.p))
        assert made.weight.partial.keywords["quant_min"] == -128
        assert made.activation.partial.keywords.get("reduce_range", False) == (
            wanted.activation.p.keywords.get("reduce_range", False)
        )
    assert isinstance(ours.get_default_qconfig(backend), tuple)


@pytest.mark.parametrize(
    "name",
    [
        "default_qconfig",
        "default_per_channel_qconfig",
        "default_dynamic_qconfig",
        "per_channel_dynamic_qconfig",
        "default_qat_qconfig",
        "float_qparams_weight_only_qconfig",
        "float_qparams_weight_only_qconfig_4bit",
    ],
)
def test_named_qconfigs_print_as_torch_prints_them(name: str) -> None:
    import torch.ao.quantization.qconfig as their_qconfigs

    assert as_theirs(getattr(ours, name)) == repr(getattr(their_qconfigs, name))


def test_x86_keeps_eight_bits_of_activations_and_makes_weights_fit() -> None:
    for name in ("x86", "fbgemm"):
        qconfig = ours.get_default_qconfig(name)
        assert common_target([qconfig, None]) == "x86-avx2"
        made = native(qconfig, "x86-avx2")
        assert made is not None
        assert made.activation == octavo.QSpec(octavo.Scheme("uint8"), octavo.Histogram())
        assert made.weight == octavo.static_qconfig("x86-avx2").weight
        assert isinstance(made.weight.observer, PairSum)


def test_qnnpack_has_one_scale_for_a_weight() -> None:
    made = native(ours.get_default_qconfig("qnnpack"), "arm")
    assert made is not None
    assert made.weight.scheme.channel_axis is None
    assert made.weight.scheme.symmetric


def test_own_observers_are_taken_as_they_are() -> None:
    qconfig = ours.QConfig(
        activation=ours.MovingAverageMinMaxObserver.with_args(averaging_constant=0.1),
        weight=ours.PerChannelMinMaxObserver.with_args(
            dtype=torch.qint8, qscheme=torch.per_channel_affine
        ),
    )
    made = native(qconfig, "x86-avx2")
    assert made is not None
    assert made.activation == octavo.QSpec(octavo.Scheme(), octavo.MovingAverageMinMax(0.1))
    assert made.weight == octavo.QSpec(octavo.Scheme("int8", channel_axis=0), octavo.MinMax())
    reduced = qconfig._replace(activation=ours.MinMaxObserver.with_args(reduce_range=True))
    kept = native(reduced, "x86-avx2")
    assert kept is not None
    assert kept.activation is not None
    assert kept.activation.scheme.qmax == 127  # such weights do not make pairs fit


MODES = {
    "dynamic int8": """
        default_dynamic_qconfig per_channel_dynamic_qconfig default_dynamic_qat_qconfig
    """,
    "weight_only uint8": "float_qparams_weight_only_qconfig default_embedding_qat_qconfig",
    "weight_only uint4": "float_qparams_weight_only_qconfig_4bit",
    "weight_only int8": "default_weight_only_qconfig",
    "static int8": "default_qat_qconfig_v2",
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for kind, names in MODES.items() for name in names.split()]
)
def test_modes(name: str, kind: str) -> None:
    made = native(getattr(ours, name), "x86-avx2")
    assert made is not None
    assert f"{made.mode} {made.weight.scheme.dtype}" == kind
    assert native(ours.QConfigDynamic(), "x86") == native(ours.default_dynamic_qconfig, "x86")


def test_a_histogram_cannot_follow_a_training_and_says_so() -> None:
    with pytest.warns(OctavoWarning, match="moving average"):
        made = native(ours.get_default_qconfig("fbgemm"), "x86-avx2", training=True)
    assert made is not None
    assert made.activation is not None
    assert made.activation.observer == octavo.MovingAverageMinMax()


def test_what_octavo_does_not_share() -> None:
    with pytest.raises(octavo.OctavoError, match="classes, not instances: MinMaxObserver or"):
        ours.QConfig(ours.MinMaxObserver(), ours.default_weight_observer)
    with pytest.raises(octavo.OctavoError, match="unknown backend 'cuda'; one of"):
        ours.get_default_qconfig("cuda")
    half = ours.QConfig(
        ours.PlaceholderObserver.with_args(dtype=torch.float16), ours.default_weight_observer
    )
    with pytest.raises(octavo.OctavoError, match=r"model.half\(\)"):
        native(half, "x86")
    with pytest.raises(octavo.OctavoError, match="finds no range"):
        native(ours.QConfig(ours.default_observer, ours.PlaceholderObserver), "x86")
    with pytest.raises(octavo.OctavoError, match="a qconfig is a str"):
        native("fbgemm", "x86")
    mixed = [ours.get_default_qconfig(name) for name in ("x86", "qnnpack")]
    with pytest.raises(octavo.OctavoError, match="take one backend for all"):
        common_target(mixed)


def test_mappings() -> None:
    qconfig = ours.get_default_qconfig("x86")
    given = {
        "": qconfig,
        "object_type": [(nn.Linear, None), (nn.functional.relu, None), ("reshape", None)],
        "module_name_regex": [("layer[12]", None)],
        "module_name": [("fc", None)],
    }
    mapping = ours.QConfigMapping.from_dict(given)
    assert mapping.to_dict() == given
    assert [str(rule) for rule in mapping.native().rules] == [
        "global",
        "op type 'torch.nn.modules.linear.Linear'",
        "op type 'relu'",
        "op type 'reshape'",
        "module name regex 'layer[12]'",
        "module name 'fc'",
    ]
    pooling = ours.QConfigMapping().set_object_type(nn.functional.max_pool2d, None)
    assert str(pooling.native().rules[-1]) == "op type 'max_pool2d'"
    assert repr(ours.get_default_qconfig_mapping()).startswith("QConfigMapping (\n global: QConfig")
    default = ours.get_default_qat_qconfig_mapping("qnnpack").global_qconfig
    assert ours.qconfig_equals(default, ours.get_default_qat_qconfig("qnnpack"))
    with pytest.raises(octavo.OctavoError, match="no key 'modules'"):
        ours.QConfigMapping.from_dict({"modules": []})
    with pytest.raises(octavo.OctavoError, match="set_module_name"):
        mapping.set_module_name_object_type_order("a", nn.Linear, 0, None)


class Clipping(ours.MinMaxObserver):
    """Somebody's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.clamp(-1, 1))


class Named(ours.MinMaxObserver):
    """Without code of its own."""


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (Clipping, "forward of Clipping would not be run.*octavo.observers"),
        (ours.FakeQuantize.with_args(observer=Clipping), "forward of Clipping"),
        (theirs.MinMaxObserver, "is torch.ao's: import it from octavo.compat.quantization"),
        (nn.ReLU, "forward of ReLU would not be run"),
        (ours.PerChannelMinMaxObserver, "one scale for the whole tensor"),
    ],
)
def test_observers_that_no_graph_would_run(activation: Any, message: str) -> None:
    with pytest.raises(octavo.OctavoError, match=message):
        native(ours.QConfig(activation, ours.default_weight_observer), "x86")
    assert native(ours.QConfig(Named, ours.default_weight_observer), "x86").activation is not None


def test_a_smallest_scale_is_none_of_a_models() -> None:
    qconfig = ours.QConfig(ours.MinMaxObserver.with_args(eps=2**-12), ours.default_weight_observer)
    with pytest.warns(OctavoWarning, match="eps=0.000244140625 of MinMaxObserver is used by"):
        native(qconfig, "x86")
