"""Weights that three operators read become weights that one reads; files of it: tests/model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.errors import ArtifactError
from octavo.graph import as_json
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.program import run_of
from octavo.graph.qdq import DEQUANTIZE, DEQUANTIZE_WEIGHT, UNPACK
from octavo.graph.version_1 import upgraded
from octavo.numerics.octavo_operators import pack_int4

CHANNELS, GROUPS = "octavo.dequantize_channels.default", "octavo.dequantize_groups.default"
Q = torch.tensor([[1, -2, 3, 4], [5, 6, -7, 7]], dtype=torch.int8)
SCALE, ZERO_POINT = torch.tensor([0.5, 2.0]), torch.tensor([1, -1], dtype=torch.int32)
GROUPED = torch.tensor([[0.5, 2.0], [4.0, 1.0]])
READ = (Ref("w"), Ref("s"), Ref("z"))


def graph(*nodes: Node, **constants: Tensor) -> Graph:
    outputs = [Ref(nodes[-1].name)]
    x = Input("x", TensorMeta((2,), "float32"), (2,))
    return Graph((x,), {"w": Q, **constants}, nodes, {"x": Ref("x")}, outputs)


def node(op: str, *args: Any) -> Node:
    return Node("y", op, args, meta=TensorMeta((2, 4), "float32"))


def zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.int32)


WEIGHTS = {
    "tensor": (graph(node(DEQUANTIZE, Ref("w"), 0.5, 1)), (Q - 1) * 0.5),
    "channels": (
        graph(node(CHANNELS, *READ, 0), s=SCALE, z=ZERO_POINT),
        (Q - ZERO_POINT[:, None]) * SCALE[:, None],
    ),
    "last axis": (
        graph(node(CHANNELS, *READ, -1), s=GROUPED.flatten(), z=zeros(GROUPED.flatten())),
        Q * GROUPED.flatten(),
    ),
    "groups": (
        graph(node(GROUPS, *READ), s=GROUPED, z=zeros(GROUPED)),
        Q * GROUPED.repeat_interleave(2, 1),
    ),
    "four bits": (
        graph(
            Node("u", UNPACK, (Ref("w"), [2, 4], True), meta=TensorMeta((2, 4), "int8")),
            node(CHANNELS, Ref("u"), *READ[1:], 0),
            w=pack_int4(Q),
            s=SCALE,
            z=ZERO_POINT,
        ),
        (Q - ZERO_POINT[:, None]) * SCALE[:, None],
    ),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_is_the_same_floats(kind: str) -> None:
    before, floats = WEIGHTS[kind]
    after = as_json.from_json(as_json.to_json(before), before.constants, upgraded)
    assert after.node("y").op == DEQUANTIZE_WEIGHT
    (found,) = run_of(after)(torch.ones(2))
    assert torch.equal(found, floats.float())


def test_activations_stay() -> None:
    made = graph(
        Node("q", "octavo.quantize.default", (Ref("x"), 0.5, 1, 0, 255, torch.uint8)),
        Node("y", DEQUANTIZE, (Ref("q"), 0.5, 1)),
    )
    assert upgraded(made).nodes == made.nodes


@pytest.mark.parametrize(
    "malformed",
    [
        graph(node(CHANNELS, *READ, 7), s=SCALE, z=ZERO_POINT),
        graph(node(CHANNELS, *READ, "0"), s=SCALE, z=ZERO_POINT),
        graph(node(CHANNELS, *READ), s=SCALE, z=ZERO_POINT),
        graph(node(CHANNELS, *READ, 1), s=SCALE, z=ZERO_POINT),
        graph(node(CHANNELS, *READ, 0), s=SCALE),
        graph(node(CHANNELS, Ref("w"), 0.5, 3, 0)),
        graph(node(CHANNELS, 3, *READ[1:], 0), s=SCALE, z=ZERO_POINT),
        graph(node(CHANNELS), s=SCALE, z=ZERO_POINT),
        graph(node(CHANNELS, Ref("x"), *READ[1:], 0), s=SCALE, z=ZERO_POINT),
        graph(node(GROUPS, *READ), s=SCALE, z=ZERO_POINT),
        graph(node(GROUPS, *READ), s=GROUPED, z=GROUPED),
        graph(node(DEQUANTIZE, Ref("w"), "0.5", 1)),
        graph(node(DEQUANTIZE, Ref("w"), 0.5)),
        graph(node(DEQUANTIZE, Ref("w"), 0.5, 2**70)),
        graph(node(DEQUANTIZE, Ref("w"), 0.5, 1), w_scale=SCALE),
        graph(Node("u", UNPACK, (Ref("w"), 3, True)), node(GROUPS, Ref("u"), *READ[1:])),
    ],
)
def test_what_is_malformed_is_one_error(malformed: Graph) -> None:
    with pytest.raises(ArtifactError):
        as_json.from_json(as_json.to_json(malformed), malformed.constants, upgraded)
