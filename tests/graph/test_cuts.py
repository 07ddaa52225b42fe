"""The cut graph gives each layer what one likes, and says what the layer makes of it."""

from __future__ import annotations

import torch
from torch import nn

import octavo
from octavo.graph.cuts import Cuts
from octavo.graph.graph import Graph
from octavo.graph.qdq import QUANTIZE
from octavo.runtimes import lower


def test_the_oracles_values_go_in_and_come_out() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    q = octavo.quantize(net, calibration=[x], target="x86").lower("reference")
    cuts = Cuts.of(q.graph, [x])
    assert cuts.layers[-1] == "3"
    assert cuts.sources == cuts.layers[:-1] == ("input", "1", "2")
    found = lower(cuts.graph, "reference", q.device).run(x, *cuts.given)
    for have, want in zip(found, cuts.outputs, strict=True):
        assert torch.equal(have, want)
    assert torch.equal(found[-1], q(x))


def test_a_layer_sees_what_it_is_given() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    x = torch.randn(8, 4)
    q = octavo.quantize(net, calibration=[x], target="x86").lower("reference")
    cuts = Cuts.of(q.graph, [x])
    zeros = [torch.zeros_like(value) for value in cuts.given]
    *_, last = lower(cuts.graph, "reference", q.device).run(x, *zeros)
    bias = q.graph.constants["1.bias"]
    assert torch.allclose(last, bias.expand_as(last), atol=1e-6)


def test_integers_of_four_bits_are_weights_and_no_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(8, 8)
    weight = octavo.QSpec(octavo.Scheme("int4", symmetric=True), octavo.MinMax())
    activation = octavo.static_qconfig("x86").activation
    q = octavo.quantize(
        net, calibration=[x], target="x86", qconfig=octavo.QConfig(activation, weight)
    )
    assert Cuts.of(q.graph, [x]).layers == ("input", "1", "2")
    assert [row.tensor for row in octavo.layer_errors(net, q, [x]).rows] == [
        *("input", "0.weight", "1", "2.weight", "2"),
    ]


def test_pieces_hold_every_node_and_make_the_oracles_values() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    graph = octavo.quantize(net, calibration=[x], target="x86").graph
    cuts = Cuts.of(graph, [x])
    pieces = list(cuts.pieces())
    known = {node.name for piece in pieces for node in piece.graph.nodes}
    assert {name for name in known if not name.endswith(".again")} == {n.name for n in graph.nodes}
    assert [piece.end for piece in pieces] == list(graph_ends(graph))
    for piece, want in zip(pieces, cuts.outputs, strict=True):
        assert len(piece.inputs) == 1
        (have,) = lower(piece.graph, "reference", x.device).run(*piece.inputs)
        assert torch.equal(have, want)
    assert [len(piece.entries) for piece in pieces] == [0, *[1] * (len(pieces) - 1)]


def graph_ends(graph: Graph) -> list[str]:
    return [*(n.name for n in graph.nodes if n.op == QUANTIZE), *graph.output_names()]
