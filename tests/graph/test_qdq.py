"""What a QDQ graph says: the names of its operators, and what stands behind a value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import octavo
from octavo.graph import operators, qdq
from octavo.graph.graph import Graph, Node, Ref


def test_every_name_is_an_operators() -> None:
    names = {
        *(qdq.QUANTIZE, qdq.DEQUANTIZE, qdq.DEQUANTIZE_WEIGHT),
        *(qdq.DYNAMIC, qdq.UNPACK, qdq.ATTENTION),
    }
    assert names > qdq.DEQUANTIZED
    for name in names:
        assert callable(operators.resolve(name))


def test_own_operators_are_told_from_the_models() -> None:
    assert qdq.is_own(Node("x.quantized", qdq.QUANTIZE))
    assert not qdq.is_own(Node("x", "aten.relu.default"))


WEIGHT = torch.tensor([[-127.0, 3.4, 8.0, -0.6], [100.0, 0.0, 12.7, 12.7]])
SPECS = {
    "tensor": octavo.Scheme("int8", symmetric=True, narrow_range=True),
    "channels": octavo.Scheme("int8", symmetric=True, narrow_range=True, channel_axis=0),
    "groups": octavo.Scheme("int8", symmetric=True, narrow_range=True, group_size=2),
    "nibbles": octavo.Scheme("int4", channel_axis=0),
    "groups of nibbles": octavo.Scheme("uint4", group_size=2),
}


def linear(scheme: octavo.Scheme) -> Graph:
    net = nn.Linear(4, 2).eval()
    with torch.no_grad():
        net.weight.copy_(WEIGHT)
    config = octavo.QConfig(None, octavo.QSpec(scheme, octavo.MinMax()))
    q = octavo.quantize(net, torch.randn(3, 4), qconfig=config, progress=False)
    return q.graph


def weight_of(graph: Graph) -> qdq.QuantizedWeight:
    found = qdq.weight_behind(graph, graph.node("linear").args[1])
    assert found is not None
    return found


@pytest.mark.parametrize("kind", SPECS)
def test_a_weight_is_read_alike_however_it_is_quantized(kind: str) -> None:
    graph = linear(SPECS[kind])
    weight = weight_of(graph)
    assert weight.name == "weight"
    assert weight.shape == [2, 4] == list(weight.integers.shape)
    assert weight.signed == (not SPECS[kind].dtype.startswith("u"))
    assert weight.scale.shape == weight.zero_point.shape
    assert weight.scale.dim() == 2
    assert weight.symmetric == SPECS[kind].symmetric
    scale, zero_point = weight.parameters()
    floats = (weight.integers.float() - zero_point) * scale
    assert torch.equal(weight.floats(), floats)
    steps = 0.5 * scale.expand(2, 4)
    assert bool(((floats - WEIGHT).abs() <= steps + 1e-5).all())


def test_a_scale_belongs_to_all_to_an_axis_or_to_groups() -> None:
    tensor, channels, groups = (
        weight_of(linear(SPECS[kind])) for kind in ("tensor", "channels", "groups")
    )
    assert (tensor.axis, channels.axis, groups.axis) == (None, 0, None)
    assert not tensor.grouped
    assert not channels.grouped
    assert groups.grouped
    assert torch.equal(tensor.channel_scale(1), torch.full((4,), 1.0))
    assert torch.allclose(channels.channel_scale(0), torch.tensor([1.0, 100 / 127]))
    assert channels.channel_scale(1) is None
    assert groups.channel_scale(0) is None


def test_what_is_no_weight_is_none() -> None:
    graph = linear(SPECS["channels"])
    for value in (Ref("input"), Ref("bias"), Ref("weight"), Ref("linear"), None, 3):
        assert qdq.weight_behind(graph, value) is None


def test_the_rounding_behind_an_activation() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 4)
    graph = octavo.quantize(net, calibration=[x], target="x86", progress=False).graph
    rounding = qdq.rounding_behind(graph, graph.node("1").args[0])
    assert rounding is graph.node("0.quantized")
    for value in (graph.node("1").args[1], Ref("input"), Ref("0"), None):
        assert qdq.rounding_behind(graph, value) is None
    assert qdq.weight_behind(graph, graph.node("1").args[0]) is None
