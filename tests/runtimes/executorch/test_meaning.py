"""What ExecuTorch computes in place of a graph: ranges of rows, scales in bfloat16."""

from __future__ import annotations

import phones
import torch
from torch import nn

import octavo
from octavo.graph.operators import arguments
from octavo.graph.qdq import DYNAMIC
from octavo.runtimes.executorch.meaning import as_xnnpack_rounds


def dynamic(net, x, **how):
    qconfig = octavo.dynamic_qconfig("executorch", **how)
    return phones.for_phones(net, x, calibration=None, mode="dynamic", qconfig=qconfig).graph


def test_what_xnnpack_has_is_left_as_it_is():
    for graph in (
        phones.for_phones(phones.image_net(), phones.IMAGES).graph,
        dynamic(phones.row_net(), phones.ROWS),
    ):
        meant = as_xnnpack_rounds(graph)
        assert meant.nodes == graph.nodes
        assert all(torch.equal(meant.constants[n], t) for n, t in graph.constants.items())


def test_ranges_of_whole_tensors_become_those_of_rows():
    graph = dynamic(phones.row_net(), phones.ROWS, per_token=False)
    assert [arguments(n)["per_token"] for n in graph.nodes if n.op == DYNAMIC] == [False] * 3
    meant = [arguments(n) for n in as_xnnpack_rounds(graph).nodes if n.op == DYNAMIC]
    assert [(a["per_token"], a["symmetric"], a["qmin"]) for a in meant] == [(True, False, -128)] * 3


def test_a_convolution_keeps_its_range():
    net = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    rules = octavo.QConfigMapping().set_object_type("conv2d", octavo.dynamic_qconfig("executorch"))
    q = phones.for_phones(net, phones.IMAGES, calibration=None, mode="dynamic", qconfig=rules)
    assert as_xnnpack_rounds(q.graph).nodes == q.graph.nodes


def test_scales_of_groups_are_bfloat16():
    weight = octavo.weight_only_qconfig(4, group_size=32).weight
    activation = octavo.dynamic_qconfig("executorch").activation
    qconfig = octavo.QConfig(activation, weight)
    q = phones.for_phones(
        phones.row_net(), phones.ROWS, calibration=None, mode="dynamic", qconfig=qconfig
    )
    meant = as_xnnpack_rounds(q.graph)
    changed = [n for n, t in q.graph.constants.items() if not torch.equal(meant.constants[n], t)]
    assert changed == ["0.weight_scale", "3.weight_scale"]  # 2 has one group to a row
    for name in changed:
        scale = meant.constants[name]
        assert torch.equal(scale, scale.bfloat16().float())
        torch.testing.assert_close(scale, q.graph.constants[name], rtol=2.0**-8, atol=0)
