"""Identities go, and rare spellings become the usual ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.passes import canonical, normalise_spelling, remove_identities

META = TensorMeta((None, 4, 8, 8), "float32")
DOUBLE = TensorMeta((None, 4, 8, 8), "float64")


def graph(*nodes: Node, **constants: torch.Tensor) -> Graph:
    output = {"out": Ref(nodes[-1].name)}
    return Graph((Input("x", META),), constants, nodes, {"x": Ref("x")}, output)


def node(op: str, *args: Any, made: TensorMeta | None = META, **kwargs: Any) -> Node:
    return Node("node", op, (Ref("x"), *args), kwargs, made)


RELU = Node("relu", "aten.relu.default", (Ref("node"),), meta=META)

IDENTITIES = [
    node("aten.dropout.default", 0.5, False),
    node("aten.feature_dropout.default", 0.5, False),
    node("aten.alpha_dropout.default", 0.5, False),
    node("aten.feature_alpha_dropout.default", 0.5, False),
    node("aten.clone.default"),
    node("aten.contiguous.default", memory_format=torch.channels_last),
    node("aten.detach.default"),
    node("aten.to.dtype", torch.float32),
    node("aten._to_copy.default", dtype=torch.float32),
    node("aten.expand.default", [-1, 4, 8, 8]),
    node("aten.view.default", [-1, 4, 8, 8]),
    node("aten.reshape_as.default", Ref("x")),
    node("aten.slice.Tensor"),
    node("aten.slice.Tensor", 0, 0, 2**63 - 1),
    node("aten.slice.Tensor", 0, None, None, 1),
    node("aten.slice.Tensor", 1, 0, 4),
]
OTHERS = [
    node("aten.expand.default", [-1, 4, 8, 8], made=None),
    node("aten.slice.Tensor", 0, 0, -1),  # as many as there are less one: N too
    node("aten.slice.Tensor", 0, 1, 2**63 - 1),
    node("aten.slice.Tensor", 0, 0, 2**63 - 1, 2),
    node("aten.slice.Tensor", 1, 0, 2, made=TensorMeta((None, 2, 8, 8), "float32")),
    node("aten.dropout.default", 0.5, True),
    node("aten.to.dtype", torch.float64, made=DOUBLE),
    node("aten.neg.default"),
]


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda n: f"{n.op} {n.args[1:]}")
def test_identities_go(identity: Node) -> None:
    (relu,) = remove_identities(graph(identity, RELU)).nodes
    assert relu.args == (Ref("x"),)
    alone = remove_identities(graph(identity))
    assert alone.nodes == ()
    assert alone.outputs == {"out": Ref("x")}


@pytest.mark.parametrize("other", OTHERS, ids=lambda n: f"{n.op} {n.args}")
def test_all_else_stays(other: Node) -> None:
    before = graph(other, RELU)
    assert remove_identities(before) == before


def test_a_reshape_of_two_open_sizes_may_change_them() -> None:
    open_sizes = TensorMeta((None, None), "float32")
    swapped = Node("node", "aten.reshape.default", (Ref("x"), [Ref("b"), Ref("a")]), {}, open_sizes)
    sizes = [Node(name, "aten.sym_size.int", (Ref("x"), i)) for i, name in enumerate("ab")]
    before = Graph((Input("x", open_sizes),), {}, (*sizes, swapped), {"x": Ref("x")}, Ref("node"))
    assert remove_identities(before) == before


def test_chains_of_identities_go() -> None:
    second = Node("second", "aten.dropout.default", (Ref("node"), 0.1, False), meta=META)
    relu = Node("relu", "aten.relu.default", (Ref("second"),), meta=META)
    (left,) = remove_identities(graph(IDENTITIES[0], second, relu)).nodes
    assert left.args == (Ref("x"),)


def test_what_only_an_identity_read_goes_too() -> None:
    like = Node("like", "aten.neg.default", (Ref("x"),), meta=META)
    same = Node("node", "aten.type_as.default", (Ref("x"), Ref("like")), meta=META)
    assert [n.name for n in remove_identities(graph(like, same, RELU)).nodes] == ["relu"]


def test_relu6_is_a_hardtanh() -> None:
    (found,) = normalise_spelling(graph(node("aten.relu6.default"))).nodes
    assert (found.op, found.args) == ("aten.hardtanh.default", (Ref("x"), 0.0, 6.0))


@pytest.mark.parametrize("op", ["aten.view.default", "aten._unsafe_view.default"])
def test_a_view_is_a_reshape(op: str) -> None:
    (found,) = normalise_spelling(graph(node(op, [-1, 4]))).nodes
    assert (found.op, found.args) == ("aten.reshape.default", (Ref("x"), [-1, 4]))


def test_a_view_as_another_dtype_is_none() -> None:
    before = graph(node("aten.view.dtype", torch.int32))
    assert normalise_spelling(before) == before


def test_decomposed_batch_norms_are_batch_norms() -> None:
    constants = {name: torch.ones(4) for name in ("w", "b", "mean", "var")}
    refs = [Ref(name) for name in constants]
    op = "aten._native_batch_norm_legit_no_training.default"
    norm = node(op, *refs, 0.1, 1e-5, made=None)
    item = Node("item", "python.getitem", (Ref("node"), 0), meta=META)
    relu = Node("relu", "aten.relu.default", (Ref("item"),), meta=META)
    found = normalise_spelling(graph(norm, item, relu, **constants))
    norm, relu = found.nodes
    assert (norm.op, norm.meta) == ("aten.batch_norm.default", META)
    assert norm.args == (Ref("x"), *refs, False, 0.1, 1e-5, False)
    assert relu.args == (Ref("node"),)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "sides"),
    [
        ((3, 3), "same", [1, 1], [1, 1]),
        ((5, 3), "same", [1], [2, 1]),
        ((3, 3), "same", [2, 3], [2, 3]),
        ((2, 3), "same", [2, 1], [1, 1]),
        ((4, 4), "valid", [1, 1], [0, 0]),
        ((2, 3), "same", [1, 1], None),  # one side would be longer than the other
    ],
)
def test_padding_in_words_becomes_numbers(
    kernel: tuple[int, int], padding: str, dilation: list[int], sides: list[int] | None
) -> None:
    conv = node("aten.conv2d.padding", Ref("w"), None, [1, 1], padding, dilation)
    before = graph(conv, w=torch.ones(4, 4, *kernel))
    (found,) = normalise_spelling(before).nodes
    if sides is None:
        assert found == conv
        return
    assert found.op == "aten.conv2d.default"
    x, w = torch.randn(2, 4, 8, 8), torch.randn(4, 4, *kernel)
    expected = torch.ops.aten.conv2d.padding(x, w, None, [1, 1], padding, dilation)
    assert torch.equal(torch.ops.aten.conv2d.default(x, w, *found.args[2:]), expected)
    assert found.args[4] == sides


def test_canonical_folds_behind_what_it_removes() -> None:
    statistics = {name: torch.full((4,), 2.0) for name in ("gamma", "beta", "mean", "var")}
    constants = statistics | {"w": torch.ones(4, 4, 1, 1)}
    conv = node("aten.conv2d.padding", Ref("w"), None, [1, 1], "valid")
    drop = Node("drop", "aten.dropout.default", (Ref("node"), 0.5, False), meta=META)
    op = "aten._native_batch_norm_legit_no_training.default"
    norm = Node("norm", op, (Ref("drop"), *map(Ref, statistics), 0.1, 0.0))
    item = Node("item", "python.getitem", (Ref("norm"), 0), meta=META)
    found = canonical(graph(conv, drop, norm, item, **constants))
    assert [n.op for n in found.nodes] == ["aten.conv2d.default"]
    assert set(found.constants) == {"w", "node.bias"}
    assert found.outputs == {"out": Ref("node")}
