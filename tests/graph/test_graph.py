"""Graphs as values."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from octavo.errors import OctavoError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta, map_refs, refs_in
from octavo.graph.records import Record

Pair = namedtuple("Pair", "first second")
META = TensorMeta((None, 4), "float32")


@pytest.fixture
def graph() -> Graph:
    nodes = (
        Node("fc", "aten.linear.default", (Ref("x"), Ref("weight")), meta=META),
        Node("unused", "aten.relu.default", (Ref("fc"),), meta=META),
        Node("parts", "aten.split.Tensor", (Ref("fc"), 2)),
        Node("sum", "aten.add.Tensor", (Ref("fc"), Ref("fc")), {"alpha": Ref("scale")}, META),
    )
    constants = {"weight": torch.ones(4, 4), "scale": torch.ones(()), "dead": torch.ones(1)}
    given = Input("x", META, (5, 4))
    return Graph((given,), constants, nodes, {"x": Ref("x")}, [Ref("sum"), {"y": Ref("parts")}])


def test_nodes_are_found_by_name(graph: Graph) -> None:
    assert graph.node("sum").short_op == "add"
    with pytest.raises(OctavoError, match="the graph has no node 'sun'"):
        graph.node("sun")


def test_users_are_listed_once_each_and_in_order(graph: Graph) -> None:
    users = {name: [node.name for node in nodes] for name, nodes in graph.users.items()}
    assert users == {
        "x": ["fc"],
        "weight": ["fc"],
        "scale": ["sum"],
        "dead": [],
        "fc": ["unused", "parts", "sum"],
        "unused": [],
        "parts": [],
        "sum": [],
    }


def test_pruning_drops_what_no_output_needs(graph: Graph) -> None:
    pruned = graph.pruned()
    assert [node.name for node in pruned.nodes] == ["fc", "parts", "sum"]
    assert set(pruned.constants) == {"weight", "scale"}
    assert pruned.inputs == graph.inputs
    assert [node.name for node in graph.nodes] == ["fc", "unused", "parts", "sum"]


def test_renaming_a_node_reads_other_values(graph: Graph) -> None:
    renamed = graph.node("sum").renamed({"fc": "relu", "scale": "s"})
    assert renamed.args == (Ref("relu"), Ref("relu"))
    assert renamed.kwargs == {"alpha": Ref("s")}
    assert renamed.name == "sum"
    assert list(graph.node("sum").refs()) == ["fc", "fc", "scale"]


def test_metas_are_those_of_inputs_and_nodes(graph: Graph) -> None:
    assert graph.metas == {"x": META, "fc": META, "unused": META, "parts": None, "sum": META}


def test_metas_of_constants_are_asked_for_by_name(graph: Graph) -> None:
    assert graph.meta("weight") == TensorMeta((4, 4), "float32")
    assert graph.meta("fc") == META
    assert graph.meta("parts") is None


def test_the_only_user_of_a_value_reads_it_alone(graph: Graph) -> None:
    assert graph.only_user("weight") is graph.node("fc")
    assert graph.only_user("fc") is None  # several read it
    assert graph.only_user("dead") is None
    assert replace(graph, outputs=[Ref("weight")]).only_user("weight") is None  # so does the caller


def test_an_argument_is_made_by_a_node_or_a_constant(graph: Graph) -> None:
    assert graph.producer(Ref("fc")) is graph.node("fc")
    assert graph.constant(Ref("scale")) is graph.constants["scale"]
    for other in (Ref("x"), 1, None):
        assert graph.producer(other) is None
        assert graph.constant(other) is None
    assert graph.producer(Ref("scale")) is None


def test_a_changed_graph_has_indexes_of_its_own(graph: Graph) -> None:
    assert len(graph.by_name) == len(graph.users["fc"]) + 1 == 4
    pruned = graph.pruned()
    assert set(pruned.by_name) == {"fc", "parts", "sum"}
    assert [node.name for node in pruned.users["fc"]] == ["parts", "sum"]
    assert "unused" not in pruned.metas


def test_output_names_and_text(graph: Graph) -> None:
    assert graph.output_names() == ["sum", "parts"]
    assert str(graph) == "Graph(4 nodes: 1 linear, 1 relu, 1 split, 1 add)"


def test_refs_are_mapped_inside_any_structure() -> None:
    tree = [Ref("a"), (Ref("b"), 1), Pair(Ref("c"), None), {"k": Ref("a")}, Record(r=Ref("b"))]
    assert list(refs_in(tree)) == ["a", "b", "c", "a", "b"]
    mapped = map_refs(tree, lambda ref: ref.name.upper())
    assert mapped == ["A", ("B", 1), Pair("C", None), {"k": "A"}, {"r": "B"}]
    assert [type(item) for item in mapped[1:]] == [tuple, Pair, dict, Record]
    assert list(refs_in(tree)) == ["a", "b", "c", "a", "b"]


@pytest.mark.parametrize(
    ("shape", "dtype", "fits"),
    [
        ((7, 4), "float32", True),
        ((1, 4), "float32", True),
        ((7, 5), "float32", False),
        ((7, 4), "float64", False),
        ((4,), "float32", False),
        ((7, 4, 1), "float32", False),
    ],
)
def test_a_tensor_fits_what_is_declared(shape: tuple[int, ...], dtype: str, fits: bool) -> None:
    tensor = torch.zeros(shape, dtype=getattr(torch, dtype))
    assert TensorMeta.of(tensor) == TensorMeta(shape, dtype)
    assert TensorMeta.of(tensor).fits(META) == fits


def test_a_meta_reads_as_a_type() -> None:
    assert str(META) == "float32[N, 4]"
    assert str(TensorMeta((), "int64")) == "int64[]"


def test_an_input_knows_sizes_to_run_with() -> None:
    assert Input("x", META, (5, 4)).sizes == (5, 4)
    assert Input("x", META).sizes == (2, 4)
    assert Input("x", TensorMeta((), "float32")).sizes == ()
