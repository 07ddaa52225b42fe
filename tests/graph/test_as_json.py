"""Graphs as JSON: all that goes in comes out, and nothing else gets in."""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import octavo
from octavo.errors import ArtifactError
from octavo.graph.as_json import decode, encode, from_json, to_json
from octavo.graph.graph import Graph, Ref
from octavo.graph.records import Record

Pair = namedtuple("Pair", "first second")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: torch.Tensor, scales: list[torch.Tensor], flag: bool) -> Any:
        y = self.conv(x).clamp(max=math.inf) * scales[0]
        z, _ = self.lstm(y.flatten(2).transpose(1, 2).to(torch.float32))
        parts = z.to(torch.float64).split(2, 1)
        zeros = torch.zeros(x.shape[0], 2, device=x.device)
        return {"y": y, "rest": [parts, (zeros, None, 3, "text")], 7: Pair(y, x.shape[0] * 2)}


@pytest.fixture(scope="module")
def graph() -> Graph:
    args = (torch.randn(2, 3, 5, 5), [torch.randn(2, 1, 1, 1)], True)
    return octavo.capture(Net(), args)


def test_a_graph_comes_back_as_it_was(graph: Graph) -> None:
    data = json.loads(json.dumps(to_json(graph)))
    back = from_json(data, graph.constants)
    assert replace(back, constants={}, outputs=0) == replace(graph, constants={}, outputs=0)
    assert back.constants is graph.constants
    for key in ("y", "rest"):
        assert back.outputs[key] == graph.outputs[key]
    assert back.outputs[7]._asdict() == graph.outputs[7]._asdict()
    assert {type(node.args) for node in back.nodes} == {tuple}


def test_a_quantized_graph_comes_back_as_it_was(graph: Graph) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    q = octavo.quantize(model, calibration=[torch.randn(2, 3, 5, 5)], progress=False).graph
    back = from_json(json.loads(json.dumps(to_json(q))), q.constants)
    assert replace(back, constants={}) == replace(q, constants={})


VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**70,
    1.5,
    math.inf,
    -math.inf,
    "text \u2603",
    "",
    Ref("layer1.0.conv"),
    [],
    (),
    [1, (2.5, [None])],
    {"a": (Ref("x"),), 3: []},
    Record(logits=Ref("x")),
    OrderedDict(b=Ref("x"), a=Ref("y")),
    torch.return_types.max((Ref("x"), Ref("y"))),
    torch.float32,
    torch.qint8,
    torch.strided,
    torch.sparse_coo,
    torch.channels_last,
    torch.device("cpu"),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_as_they_were(value: Any) -> None:
    back = decode(json.loads(json.dumps(encode(value), allow_nan=False)))
    assert back == value
    assert type(back) is type(value)


def test_nan_and_named_tuples_come_back() -> None:
    assert math.isnan(decode(encode(math.nan)))
    back = decode(json.loads(json.dumps(encode(Pair(Ref("x"), (1,))))))
    assert (back.first, back.second, type(back).__name__) == (Ref("x"), (1,), "Pair")
    assert list(back) == [Ref("x"), (1,)]


@pytest.mark.parametrize("value", [object(), 1j, {1, 2}, b"bytes", {(1, 2): 3}, torch.ones(1)])
def test_what_no_file_can_hold_is_an_error(value: Any) -> None:
    with pytest.raises(ArtifactError, match="cannot be saved"):
        encode([value])


@pytest.mark.parametrize(
    "data",
    [
        {"eval": "1"},
        {"ref": "a", "tuple": []},
        {},
        {"ref": 5},
        {"ref": None},
        {"tuple": None},
        {"tuple": 5},
        {"float": "1e5"},
        {"float": []},
        {"dtype": "load"},
        {"dtype": "nn"},
        {"dtype": "_C"},
        {"dtype": "channels_last"},
        {"dtype": None},
        {"layout": "float32"},
        {"memory_format": "onnx"},
        {"dict": [["a"]]},
        {"dict": [[None, 1]]},
        {"dict": {"a": 1}},
        {"record": [[[], 1]]},
        {"namedtuple": ["A", [['__import__("os")', 1]]]},
        {"namedtuple": ["A.b", [["a", 1]]]},
        {"namedtuple": ["A", [["a", 1], ["a", 2]]]},
        {"namedtuple": ["A", [["_a", 1]]]},
        {"namedtuple": []},
    ],
    ids=str,
)
def test_values_of_unknown_kinds_are_malformed(graph: Graph, data: Any) -> None:
    broken = to_json(graph) | {"outputs": [data]}
    with pytest.raises(ArtifactError):
        from_json(json.loads(json.dumps(broken)), graph.constants)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def node(data: dict[str, Any], op: str) -> dict[str, Any]:
    return next(node for node in data["nodes"] if node["op"] == op)


CONV = "aten.conv2d.default"

Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "no nodes": lambda data: data.pop("nodes"),
    "nodes a dict": lambda data: data.update(nodes={"a": 1}),
    "nodes a number": lambda data: data.update(nodes=5),
    "node a list": lambda data: data["nodes"].insert(0, []),
    "node without name": lambda data: data["nodes"][0].pop("name"),
    "name a number": lambda data: data["nodes"][0].update(name=7),
    "name a list": lambda data: data["nodes"][0].update(name=["a"]),
    "op missing": lambda data: data["nodes"][0].pop("op"),
    "op a list": lambda data: data["nodes"][0].update(op=["aten", "relu"]),
    "args a number": lambda data: data["nodes"][0].update(args=3),
    "args null": lambda data: data["nodes"][0].update(args=None),
    "kwargs a list": lambda data: data["nodes"][0].update(kwargs=[]),
    "meta a number": lambda data: node(data, CONV).update(meta=4),
    "meta of another rank": lambda data: node(data, CONV).update(meta=[[None], "float32"]),
    "meta with text": lambda data: node(data, CONV).update(meta=[["2", 3], "float32"]),
    "meta with a negative size": lambda data: node(data, CONV).update(meta=[[-1, 3], "float32"]),
    "meta with a fraction": lambda data: node(data, CONV).update(meta=[[2.5], "float32"]),
    "meta with nan": lambda data: node(data, CONV).update(meta=[[math.nan], "float32"]),
    "meta of no dtype": lambda data: node(data, CONV).update(meta=[[None], "float33"]),
    "meta of a module": lambda data: node(data, CONV).update(meta=[[None], "nn"]),
    "inputs missing": lambda data: data.pop("inputs"),
    "input twice": lambda data: data["inputs"].append(data["inputs"][0]),
    "input named as a constant": lambda data: data["inputs"][0].__setitem__(0, "conv.weight"),
    "input without example": lambda data: data["inputs"][0].__delitem__(slice(3, None)),
    "range upside down": lambda data: data["inputs"][0].__setitem__(4, [1.0, -1.0]),
    "range of text": lambda data: data["inputs"][0].__setitem__(4, ["a", "b"]),
    "range of one": lambda data: data["inputs"][0].__setitem__(4, [1.0]),
    "example of another rank": lambda data: data["inputs"][0].__setitem__(3, [2]),
    "example of another shape": lambda data: data["inputs"][0].__setitem__(3, [2, 4, 5, 5]),
    "example negative": lambda data: data["inputs"][0].__setitem__(3, [-2, 3, 5, 5]),
    "example null": lambda data: data["inputs"][0].__setitem__(3, [None, 3, 5, 5]),
    "example huge": lambda data: data["inputs"][0].__setitem__(3, [2**62, 3, 5, 5]),
    "example endless": lambda data: data["inputs"][0].__setitem__(3, [2**80, 3, 5, 5]),
    "arguments missing": lambda data: data.pop("arguments"),
    "argument lost": lambda data: data["arguments"].pop(0),
    "argument of another name": lambda data: data["arguments"][0].__setitem__(1, {"ref": "y"}),
    "argument twice": lambda data: data["arguments"].append(["z", {"ref": "x"}]),
    "outputs undefined": lambda data: data.update(outputs={"ref": "nope"}),
    "deep nesting": lambda data: data.update(outputs=nested(5000)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_malformed_graphs_are_one_error(graph: Graph, change: Change) -> None:
    data = copy.deepcopy(to_json(graph))
    change(data)
    with pytest.raises(ArtifactError, match=r"^its "):
        from_json(data, graph.constants)


@pytest.mark.parametrize("data", [None, [], 5, "graph", {}, math.nan], ids=str)
def test_what_is_no_graph_at_all_is_one_error(data: Any) -> None:
    with pytest.raises(ArtifactError, match="its graph is malformed"):
        from_json(data, {})
