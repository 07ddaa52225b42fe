"""Whether a graph is sound: names, operators, arguments, and the tensors that they make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzzing
import pytest
import torch

from octavo.errors import ArtifactError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.soundness import shapes
from octavo.graph.soundness.soundness import check

CPU = torch.device("cpu")


def meta(*shape: int | None, dtype: str = "float32") -> TensorMeta:
    return TensorMeta(shape, dtype)


CONV = Node(
    "conv",
    "aten.conv2d.default",
    (Ref("x"), Ref("weight"), None, [1, 1], [1, 1]),
    meta=meta(None, 4, 8, 8),
)
SIZE = Node("size", "aten.sym_size.int", (Ref("x"), 0))
HALF = Node("half", "python.floordiv", (Ref("size"), 2))
PARTS = Node("parts", "aten.split.Tensor", (Ref("conv"), 2, 1))
PART = Node("part", "python.getitem", (Ref("parts"), 1), meta=meta(None, 2, 8, 8))


def graph(*nodes: Node, output: str = "conv", **constants: torch.Tensor) -> Graph:
    given = Input("x", meta(None, 3, 8, 8), (6, 3, 8, 8))
    tensors = {"weight": torch.ones(4, 3, 3, 3), "scale": torch.ones(4)} | constants
    return Graph((given,), tensors, (CONV, *nodes), {"x": Ref("x")}, Ref(output))


def node(op: str, *args: Any, made: TensorMeta | None = None, **kwargs: Any) -> Node:
    return Node("node", op, args, kwargs, made)


@pytest.mark.parametrize(
    "nodes",
    [
        (),
        (SIZE, HALF, PARTS, PART),
        # The batch of the example, six, is one that can be halved; two thirds of it cannot be.
        (
            SIZE,
            HALF,
            node("aten.reshape.default", Ref("x"), [Ref("half"), 384], made=meta(None, 384)),
        ),
        (node("aten.zeros.default", [2], device=CPU, made=meta(2)),),
        (node("aten.arange.default", 4, made=meta(4, dtype="int64")),),
        (node("aten.add.Tensor", Ref("conv"), Ref("conv"), made=meta(None, 4, 8, 8)),),
        (node("aten.index.Tensor", Ref("x"), [None, Ref("index")], made=meta(None, 2, 8, 8)),),
        (node("aten.to.dtype", Ref("x"), torch.int8, made=meta(None, 3, 8, 8, dtype="int8")),),
    ],
    ids=lambda nodes: nodes[-1].op if nodes else "conv",
)
def test_a_sound_graph_passes(nodes: tuple[Node, ...]) -> None:
    check(graph(*nodes, index=torch.tensor([0, 2])))


def test_a_size_that_depends_on_values_is_left_open() -> None:
    counts = node("aten.unique_consecutive.default", Ref("index"))
    open_ = meta(None, dtype="int64")
    first = replace(node("python.getitem", Ref("node"), 0, made=open_), name="first")
    relu = replace(node("aten.relu.default", Ref("first"), made=open_), name="relu")
    rows = replace(
        node("aten.reshape.default", Ref("relu"), [3, -1], made=meta(3, None, dtype="int64")),
        name="rows",
    )
    check(graph(counts, first, relu, rows, index=torch.tensor([0, 2])))


def test_what_lies_behind_an_open_size_is_checked() -> None:
    counts = node("aten.unique_consecutive.default", Ref("index"))
    first = replace(
        node("python.getitem", Ref("node"), 0, made=meta(None, dtype="int64")), name="first"
    )
    constants = {"index": torch.tensor([0, 2])}
    for broken in (
        node("aten.view.dtype", Ref("first"), -1, made=meta(None)),
        node("aten.relu.default", Ref("first"), made=meta(None)),
        node("python.mod", "%1000000000d meta tensor", 5),
    ):
        with pytest.raises(ArtifactError, match="'broken'"):
            check(graph(counts, first, replace(broken, name="broken"), **constants))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((CONV,), "its node 'conv' is defined twice or reads"),
        ((replace(CONV, name="x"),), "its node 'x' is defined twice"),
        ((replace(CONV, name="weight"),), "its node 'weight' is defined twice"),
        ((node("aten.relu.default", Ref("nope")),), r"'node' is defined twice or reads \['nope'\]"),
        ((node("aten.relu.default", Ref("node")),), r"reads \['node'\]"),
        ((node("aten.cat.default", [Ref("x"), [Ref("nope")]]),), r"reads \['nope'\]"),
        ((node("os.system", "touch canary"),), r"'os\.system' is not one that Octavo runs"),
        ((node("aten.from_file.default", "/etc/passwd"),), "is not one that Octavo runs"),
        ((node("aten.relu_.default", Ref("x")),), "is not one that Octavo runs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_and_operators(nodes: tuple[Node, ...], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        check(graph(*nodes))


@pytest.mark.parametrize(
    "broken",
    [
        node("aten.relu.default"),
        node("aten.relu.default", Ref("x"), 1),
        node("aten.relu.default", Ref("x"), nope=1),
        node("aten.relu.default", Ref("x"), self=Ref("x")),
        node("aten.relu.default", "x"),
        node("aten.relu.default", None),
        node("aten.relu.default", [Ref("x")]),
        node("aten.relu.default", {"a": Ref("x")}),
        node("aten.add.Tensor", Ref("x"), Ref("weight")),
        node("aten.linear.default", Ref("x"), Ref("weight")),
        node("aten.reshape.default", Ref("x"), [7, -1]),
        node("aten.reshape.default", Ref("x"), [2**63, 2**63]),
        node("aten.select.int", Ref("x"), 9, 0),
        node("aten.conv2d.default", Ref("x"), Ref("weight"), None, [0, 0]),
        node("aten.conv2d.default", Ref("x"), Ref("weight"), None, [1, 1], [0, 0], [1, 1], 2),
        node("aten.zeros.default", ["2"]),
        node("aten.zeros.default", [2], device="nowhere"),
        # A dtype as a number, which torch would take unchecked.
        node("aten.view.dtype", Ref("x"), -1),
        node("aten.to.dtype", Ref("x"), 10**6),
        node("aten.zeros.default", [2], dtype=77),
        node("aten.clone.default", Ref("x"), memory_format=9),
        node("octavo.quantize.default", Ref("x"), 0.1, 0, 0, 255, 99),
        node("octavo.quantize.default", Ref("x"), 0.1, 0.5, 0, 255, torch.uint8),
        # Ranges that hold no integers, or more than the dtype.
        node("octavo.quantize.default", Ref("x"), 0.1, 0, 5, 5, torch.uint8),
        node("octavo.quantize.default", Ref("x"), 0.1, 0, 255, 0, torch.uint8),
        node("octavo.quantize.default", Ref("x"), 0.1, 0, 0, 255, torch.int8),
        node("octavo.quantize.default", Ref("x"), 0.1, 0, 0, 255, torch.float32),
        node("octavo.fake_quantize_dynamic.default", Ref("x"), 7, -8, False, True),
        node("octavo.fake_quantize_dynamic.default", Ref("x"), 0, 255, True, True),
        node("octavo.dequantize.Tensor", Ref("weight"), Ref("scale"), Ref("scale")),
        # Lists, text and integers that grow.
        node("python.mul", [0], 10**9),
        node("python.mul", "x", 10**9),
        node("python.add", [Ref("x")], [Ref("x")]),
        node("python.mod", "%1000000000d", 5),
        node("python.mul", 2**64, 2**64),
        node("python.floordiv", 1, 0),
        node("python.add", 1),
        node("python.getitem", Ref("x")),
        node("python.getitem", 5, 0),
        node("python.getitem", [1], 3),
    ],
    ids=lambda broken: f"{broken.op} {broken.args} {broken.kwargs}"[:60],
)
def test_arguments_that_an_operator_does_not_take(broken: Node) -> None:
    for made in (None, meta(None, 3, 8, 8)):
        with pytest.raises(ArtifactError, match=f"'node': {broken.op} does not take its arguments"):
            check(graph(replace(broken, meta=made)))


def test_the_length_of_sequences_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own answer walks them step by step."""
    monkeypatch.setattr(shapes, "_on_meta", None)
    given = Input("x", meta(None, 100_000, 4), (1, 100_000, 4))
    weights = {"i": torch.ones(12, 4), "h": torch.ones(12, 3), "state": torch.ones(1, 1, 3)}
    for op, hx, gates in (
        ("aten.lstm.input", [Ref("state"), Ref("state")], 4),
        ("aten.gru.input", Ref("state"), 3),
        ("aten.rnn_tanh.input", Ref("state"), 1),
    ):
        constants = weights | {"i": torch.ones(gates * 3, 4), "h": torch.ones(gates * 3, 3)}
        args = (Ref("x"), hx, [Ref("i"), Ref("h")], False, 1, 0.0, False, False, True)
        layer = Node("layer", op, args)
        y = Node("y", "python.getitem", (Ref("layer"), 0), {}, meta(None, 100_000, 3))
        sound = Graph((given,), constants, (layer, y), {"x": Ref("x")}, Ref("y"))
        check(sound)
        with pytest.raises(ArtifactError, match="weights that do not fit"):
            check(replace(sound, constants=constants | {"h": torch.ones(gates * 3, 4)}))


@pytest.mark.parametrize(
    "declared",
    [
        None,
        meta(None, 5, 8, 8),
        meta(None, 4, 8),
        meta(None, 4, 8, 8, dtype="float64"),
        meta(7, 4, 8, 8),
        meta(),
    ],
    ids=str,
)
def test_results_that_are_not_what_was_declared(declared: TensorMeta | None) -> None:
    broken = replace(CONV, name="node", meta=declared)
    with pytest.raises(ArtifactError, match=r"'node' makes float32\[6, 4, 8, 8\], the graph decl"):
        check(graph(broken))


def test_a_list_is_not_a_tensor() -> None:
    with pytest.raises(ArtifactError, match="'parts' makes None, the graph declares"):
        check(graph(replace(PARTS, meta=meta(None, 2, 8, 8))))


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(4, 5, 3, 3),
        torch.ones(8, 3, 3, 3),
        torch.ones(4),
    ],
    ids=lambda weight: str(TensorMeta.of(weight)),
)
def test_constants_of_another_shape(weight: torch.Tensor) -> None:
    with pytest.raises(ArtifactError, match="its node 'conv'"):
        check(graph(weight=weight))


def test_nodes_and_outputs_are_bounded() -> None:
    many = replace(graph(), outputs=[Ref("conv")] * 10_001)
    with pytest.raises(ArtifactError, match="more nodes or outputs than a model may"):
        check(many)
    check(replace(many, outputs=[Ref("conv")] * 10_000))


def test_outputs_must_be_made() -> None:
    with pytest.raises(ArtifactError, match=r"its outputs \['nope'\] are not made"):
        check(graph(output="nope"))


@pytest.mark.parametrize(
    "costly",
    [
        (node("aten.zeros.default", [10**9], made=meta(10**9)),),
        (node("aten.zeros.default", [2**39], device=CPU, made=meta(2**39)),),
        (node("aten.new_zeros.default", Ref("x"), [10**9], made=meta(10**9)),),
        (node("aten.arange.default", 10**9, made=meta(10**9, dtype="int64")),),
        (node("aten.expand.default", Ref("scale"), [10**9, 4], made=meta(10**9, 4)),),
        (node("aten.pad.default", Ref("scale"), [10**9, 0], made=meta(10**9 + 4)),),
        (node("aten.repeat.default", Ref("scale"), [10**9], made=meta(4 * 10**9)),),
        # Many of them, each of which would do.
        (
            *(Node(f"n{i}", "aten.zeros.default", ([2**24],), {}, meta(2**24)) for i in range(30)),
            node("aten.stack.default", [Ref(f"n{i}") for i in range(4)], made=meta(4, 2**24)),
        ),
        (
            Node("a", "aten.zeros.default", ([2**13, 2**13],), {}, meta(2**13, 2**13)),
            node("aten.matmul.default", Ref("a"), Ref("a"), made=meta(2**13, 2**13)),
        ),
    ],
    ids=lambda nodes: f"{nodes[-1].op} {len(nodes)}",
)
def test_memory_and_time_are_bounded(costly: tuple[Node, ...]) -> None:
    """By what a graph holds: here a few kilobytes."""
    with pytest.raises(ArtifactError, match="such a file may"):
        check(graph(*costly))


def test_lists_are_bounded() -> None:
    made = meta(10**6)
    zeros = Node("zeros", "aten.zeros.default", ([10**6],), {}, made)
    for op, *args in (
        ("aten.unbind.int", 0),
        ("aten.split.Tensor", 1),
        ("aten.chunk.default", 10**6),
        ("aten.tensor_split.sections", 10**6),
    ):
        with pytest.raises(ArtifactError, match="more than 16384 tensors"):
            check(graph(zeros, node(op, Ref("zeros"), *args)))


def test_arguments_must_give_each_input_once() -> None:
    sound = graph()
    for arguments in ({}, {"x": Ref("y")}, {"x": [Ref("x"), Ref("x")]}, {"x": Ref("conv")}):
        with pytest.raises(ArtifactError, match="its arguments do not give each input once"):
            check(replace(sound, arguments=arguments))


def test_inputs_and_constants_have_names_of_their_own() -> None:
    with pytest.raises(ArtifactError, match="its graph gives one name to two tensors"):
        check(graph(x=torch.ones(1)))


def test_foreign_calls_do_no_harm(tmp_path: Path) -> None:
    """``make fuzz`` runs more of them."""
    found = fuzzing.run("hostile_calls.py", tmp_path, 0, 1500)
    assert not found.wrong
    assert found.counts.total() == 1500
    assert min(found.counts[how] for how in ("refused", "runs", "error")) > 30


def test_a_call_that_ends_its_process_is_found(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(fuzzing.TESTS)!r})\n"
        "import fuzzing\n"
        "def outcome(seed):\n"
        "    if seed == 3: os.abort()\n"
        "    if seed == 5: bytearray(2**40)\n"
        "    return 'fine' if seed != 6 else 'odd'\n"
        "fuzzing.serve(outcome, {'fine'})\n"
    )
    found = fuzzing.run(str(script), tmp_path, 0, 8)
    assert found.wrong == [
        "3 ended the process: -6 ",
        "5 ended the process: 1 MemoryError",
        "6 odd",
    ]
