"""Between a Python call and a graph's flat list of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from octavo.errors import InputError
from octavo.graph.calls import PlainCalls, build_output, flatten_call
from octavo.graph.graph import Graph, Input, Ref, TensorMeta
from octavo.graph.records import Record

IMAGE = TensorMeta((None, 3, 4, 4), "float32")
ROW = TensorMeta((None, 2), "float32")
TOKENS = TensorMeta((None, 5), "int64")

# def forward(x, rows, state, flag=True, mask=None)
GRAPH = Graph(
    inputs=(
        Input("x", IMAGE),
        Input("rows_0", ROW),
        Input("rows_1", TOKENS),
        Input("state_h", ROW),
        Input("state_3", ROW),
    ),
    constants={},
    nodes=(),
    arguments={
        "x": Ref("x"),
        "rows": [Ref("rows_0"), (Ref("rows_1"), 7)],
        "state": {"h": Ref("state_h"), 3: Ref("state_3")},
        "flag": True,
        "mask": None,
    },
    outputs=None,
)


@pytest.fixture
def call() -> dict[str, Any]:
    rows = [torch.randn(6, 2), (torch.ones(6, 5, dtype=torch.int64), 7)]
    state = {3: torch.randn(6, 2), "h": torch.randn(6, 2)}
    return {"x": torch.randn(6, 3, 4, 4), "rows": rows, "state": state, "flag": True}


def test_tensors_come_in_the_order_of_the_inputs(call: dict[str, Any]) -> None:
    expected = [
        call["x"],
        call["rows"][0],
        call["rows"][1][0],
        call["state"]["h"],
        call["state"][3],
    ]
    in_any_order = dict(reversed(call.items()))
    for args, kwargs in (
        ((), in_any_order),
        (tuple(call.values()), {}),
        ((call["x"], call["rows"]), {"flag": True, "state": call["state"], "mask": None}),
    ):
        found = flatten_call(GRAPH, args, kwargs)
        assert len(found) == len(expected)
        assert all(one is other for one, other in zip(found, expected, strict=True))


WRONG = [
    ("x", None, "x is None: give a tensor"),
    ("x", np.zeros((6, 3, 4, 4), np.float32), "x is a ndarray: give a tensor, torch.from_numpy"),
    ("x", torch.zeros(6, 1, 4, 4), r"'x' is float32\[6, 1, 4, 4\]; expected float32\[N, 3, 4, 4\]"),
    ("x", torch.zeros(3, 4, 4), r"'x' is float32\[3, 4, 4\]; expected"),
    ("x", torch.zeros(6, 3, 4, 4).double(), "'x' is float64.*give x.float"),
    ("x", torch.zeros(6, dtype=torch.int64), r"'x' is int64\[6\].*look like labels: pass inputs="),
    ("x", torch.zeros(6, 3, 4, 4, dtype=torch.uint8), "'x' is uint8.*give the dtype and sizes"),
    (
        "rows",
        [torch.zeros(6, 2)],
        "rows has another structure than at capture, where it had 2 items",
    ),
    ("rows", torch.zeros(2, 2), "rows has another structure"),
    ("rows", [torch.zeros(6, 2), (None, 7)], r"rows\[1\]\[0\] is None: give a tensor"),
    ("state", [1, 2], r"state has other keys than at capture, \['h', 3\]"),
    ("state", {"h": torch.zeros(6, 2)}, "state has other keys"),
    ("state", {"h": torch.zeros(6, 2), "3": torch.zeros(6, 2)}, "state has other keys"),
    ("state", {"h": torch.zeros(6, 2), 3: 5}, r"state\[3\] is 5: give a tensor"),
    ("flag", False, "flag is False; the model was captured with True, which is part of the graph"),
    ("flag", torch.tensor([True, True]), r"flag is tensor\(.*captured with True"),
    ("flag", np.array([True, True]), "flag is array.*captured with True"),
    ("flag", 1, "flag is 1; the model was captured with True"),
    ("mask", torch.zeros(2), r"mask is tensor\(.*captured with None"),
    ("rows", [torch.zeros(6, 2), (torch.ones(6, 5).long(), 8)], r"rows\[1\]\[1\] is 8; .* with 7"),
    ("y", 1, r"the model has no argument 'y'; it was captured with \['x', 'rows', 'state'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[case[2] for case in WRONG])
def test_what_does_not_fit_is_named(
    call: dict[str, Any], name: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        flatten_call(GRAPH, (), call | {name: value})


def test_missing_superfluous_and_repeated_arguments(call: dict[str, Any]) -> None:
    x = call.pop("x")
    with pytest.raises(InputError, match=r"the argument 'x' is missing; the model takes \['x'"):
        flatten_call(GRAPH, (), call)
    with pytest.raises(InputError, match="the argument 'x' is given twice"):
        flatten_call(GRAPH, (x,), call | {"x": x})
    with pytest.raises(
        InputError, match=r"the model takes 5 arguments .*, not 7; .*inputs=lambda batch: batch"
    ):
        flatten_call(GRAPH, (x,) * 7, {})
    assert len(flatten_call(GRAPH, (x, *list(call.values()), None, None), {})) == 5


def test_an_argument_that_was_none_may_be_left_out(call: dict[str, Any]) -> None:
    assert len(flatten_call(GRAPH, (), call)) == 5
    with pytest.raises(InputError, match="'flag' is missing"):
        flatten_call(GRAPH, (), {name: value for name, value in call.items() if name != "flag"})


@dataclass
class State:
    h: torch.Tensor
    cell: torch.Tensor | None = None


def test_an_object_gives_its_attributes() -> None:
    inputs = (Input("s_h", ROW),)
    graph = Graph(inputs, {}, (), {"s": Record(h=Ref("s_h"))}, None)
    h = torch.zeros(4, 2)
    for state in (State(h), {"h": h}, Record(h=h)):
        assert flatten_call(graph, (state,), {})[0] is h
    with pytest.raises(InputError, match="s has other keys"):
        flatten_call(graph, (State(h, h),), {})
    with pytest.raises(InputError, match="s has other keys"):
        flatten_call(graph, (5,), {})


def test_sizes_that_were_captured_as_fixed_stay_fixed() -> None:
    graph = Graph((Input("x", TensorMeta((2, 3), "float32")),), {}, (), {"x": Ref("x")}, None)
    assert len(flatten_call(graph, (torch.zeros(2, 3),), {})) == 1
    with pytest.raises(InputError, match=r"is float32\[4, 3\]; expected float32\[2, 3\]"):
        flatten_call(graph, (torch.zeros(4, 3),), {})


def test_results_are_put_into_the_models_structure() -> None:
    outputs = {"a": Ref("p"), "rest": [(Ref("q"), None), Record(again=Ref("p")), 3]}
    graph = Graph((), {}, (), {}, outputs)
    assert graph.output_names() == ["p", "q", "p"]
    built = build_output(graph, (1, 2, 1))
    assert built == {"a": 1, "rest": [(2, None), {"again": 1}, 3]}
    assert built["rest"][1].again == 1


def test_calls_of_shapes_that_were_checked_are_taken_as_they_are(monkeypatch) -> None:
    inputs = tuple(Input(name, ROW) for name in "ab")
    calls = PlainCalls(Graph(inputs, {}, (), {"a": Ref("a"), "b": Ref("b")}, Ref("a")))
    pair = torch.rand(3, 2), torch.rand(3, 2)
    assert calls.flatten(pair, {}) == [*pair]
    monkeypatch.setattr("octavo.graph.calls.flatten_call", None)  # is not asked again
    assert calls.flatten(pair, {}) is pair
    monkeypatch.undo()
    assert calls.flatten(pair[:1], {"b": pair[1]}) == [*pair]
    refused: list[tuple[Any, ...]] = [
        (pair[0], torch.rand(3, 4)),  # another shape
        (pair[0], pair[1].double()),
        (pair[0], pair[1].numpy()),
        pair[:1],
        (*pair, pair[0]),
    ]
    for args in refused:
        with pytest.raises(InputError):
            calls.flatten(args, {})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_are_not_dense_are_refused() -> None:
    calls = PlainCalls(Graph((Input("x", ROW),), {}, (), {"x": Ref("x")}, Ref("x")))
    x = torch.rand(3, 2)
    assert calls.flatten((x,), {}) == [x]
    with pytest.raises(InputError, match=r"x is of layout torch.sparse_coo: give x.to_dense\(\)"):
        calls.flatten((x.to_sparse(),), {})
    with pytest.raises(InputError, match=r"x is a nested tensor: .*to_padded_tensor\(x, 0.0\)"):
        calls.flatten((torch.nested.nested_tensor([x, x[:2]]),), {})
