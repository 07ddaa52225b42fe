"""Rules that say what stands in the place of a node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.program import run_of
from octavo.graph.rewrite import Constant, Part, rewrite

META = TensorMeta((3,), "float32")
X = torch.tensor([-1.0, 0.5, 2.0])


@pytest.fixture
def graph() -> Graph:
    nodes = (
        Node("neg", "aten.neg.default", (Ref("x"),), meta=META),
        Node("relu", "aten.relu.default", (Ref("neg"),), meta=META),
        Node("sum", "aten.add.Tensor", (Ref("relu"), Ref("shift")), meta=META),
    )
    constants = {"shift": torch.ones(3)}
    outputs = {"sum": Ref("sum"), "relu": [Ref("relu")]}
    return Graph((Input("x", META),), constants, nodes, {"x": Ref("x")}, outputs)


def results(graph: Graph) -> list[list[float]]:
    return [result.tolist() for result in run_of(graph)(X)]


def test_a_rule_that_gives_each_node_back_changes_nothing(graph: Graph) -> None:
    assert rewrite(graph, lambda node: node) == graph


def test_what_reads_a_value_that_is_gone_reads_the_other(graph: Graph) -> None:
    def without_neg_and_relu(node: Node) -> Part:
        return node.args[0] if node.name in ("neg", "relu") else node  # type: ignore[no-any-return]

    found = rewrite(graph, without_neg_and_relu)
    assert [(node.name, node.args) for node in found.nodes] == [("sum", (Ref("x"), Ref("shift")))]
    assert found.outputs == {"sum": Ref("sum"), "relu": [Ref("x")]}
    assert results(found) == [[0.0, 1.5, 3.0], [-1.0, 0.5, 2.0]]


def test_a_rule_sees_nodes_that_read_what_is_left(graph: Graph) -> None:
    seen = {}

    def without_neg(node: Node) -> Part:
        seen[node.name] = list(node.refs())
        return Ref("x") if node.name == "neg" else node

    rewrite(graph, without_neg)
    assert seen == {"neg": ["x"], "relu": ["x"], "sum": ["relu", "shift"]}


def test_several_nodes_and_constants_stand_in_the_place_of_one(graph: Graph) -> None:
    def doubled(node: Node) -> Iterator[Part]:
        if node.name == "sum":
            yield Constant("two", torch.tensor(2.0))
            yield Constant("shift", torch.zeros(3))
            yield Node("twice", "aten.mul.Tensor", (node.args[0], Ref("two")), meta=META)
            node = replace(node, args=(Ref("twice"), node.args[1]))
        yield node

    found = rewrite(graph, doubled)
    assert [node.name for node in found.nodes] == ["neg", "relu", "twice", "sum"]
    assert results(found) == [[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert bool(graph.constants["shift"].all())  # the graph that it was made of is as it was


def test_a_constant_stands_in_the_place_of_a_node_of_its_name(graph: Graph) -> None:
    def fixed(node: Node) -> Part:
        return Constant("relu", torch.full((3,), 5.0)) if node.name == "relu" else node

    found = rewrite(graph, fixed)
    assert [node.name for node in found.nodes] == ["sum"]  # neg is read by nothing now
    assert results(found) == [[6.0, 6.0, 6.0], [5.0, 5.0, 5.0]]


def test_a_node_may_get_another_name(graph: Graph) -> None:
    def renamed(node: Node) -> Iterator[Part]:
        if node.name == "relu":
            node = replace(node, name="positive")
            yield Ref("positive")
        yield node

    found = rewrite(graph, renamed)
    assert [node.name for node in found.nodes] == ["neg", "positive", "sum"]
    assert found.output_names() == ["sum", "positive"]
    assert results(found) == results(graph)


def test_nothing_may_stand_in_the_place_of_a_node_that_nothing_reads(graph: Graph) -> None:
    found = rewrite(replace(graph, outputs=Ref("relu")), lambda n: () if n.name == "sum" else n)
    assert [node.name for node in found.nodes] == ["neg", "relu"]
    assert not found.constants
