"""A list of steps as one function."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.errors import CaptureError, OctavoError
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.program import Step, compile_steps, run_of, steps_of


def scaled(x: Tensor, by: float = 2.0) -> Tensor:
    return x * by


def run(
    inputs: list[str],
    steps: list[Step],
    outputs: list[str],
    *values: Any,
    constants: dict[str, Tensor] | None = None,
) -> tuple[Any, ...]:
    return compile_steps(inputs, steps, outputs, constants or {})(*values)


def test_steps_run_in_order_on_inputs_and_constants() -> None:
    steps = [
        Step("a", torch.add, (Ref("x"), Ref("weight"))),
        Step("b", scaled, (Ref("a"),), {"by": 10.0}),
        Step("c", torch.add, (Ref("b"), Ref("y"))),
    ]
    weight = torch.tensor([1.0, 2.0])
    x, y = torch.tensor([3.0, 4.0]), torch.tensor([0.5, 0.5])
    (result,) = run(["x", "y"], steps, ["c"], x, y, constants={"weight": weight})
    assert result.tolist() == [40.5, 60.5]
    assert x.tolist() == [3.0, 4.0]


def test_outputs_may_be_inputs_constants_and_repeated() -> None:
    x, weight = torch.ones(1), torch.zeros(1)
    outputs = ["x", "a", "weight", "a"]
    steps = [Step("a", scaled, (Ref("x"),))]
    results = run(["x"], steps, outputs, x, constants={"weight": weight, "unused": weight})
    assert results[0] is x
    assert results[2] is weight
    assert results[1] is results[3]


def test_nothing_in_nothing_out() -> None:
    assert run([], [], []) == ()


def test_references_inside_lists_and_tuples() -> None:
    steps = [
        Step("joined", torch.cat, ([Ref("x"), Ref("y"), Ref("x")], 0)),
        Step("nested", lambda tree: tree[0][1][0] + tree[1], (((1, [Ref("x")]), Ref("y")),)),
        Step("empty", lambda *args: args, ((), [], (3,))),
    ]
    x, y = torch.tensor([1.0]), torch.tensor([2.0])
    joined, nested, empty = run(["x", "y"], steps, ["joined", "nested", "empty"], x, y)
    assert joined.tolist() == [1.0, 2.0, 1.0]
    assert nested.item() == 3.0
    assert empty == ((), [], (3,))


def test_arguments_are_bound_as_the_objects_they_are() -> None:
    marker = object()
    steps = [Step("out", lambda value, nan: (value, nan), (marker, float("nan")))]
    ((value, nan),) = run([], steps, ["out"])
    assert value is marker
    assert nan != nan


def test_a_value_is_released_after_its_last_use() -> None:
    alive: dict[str, bool] = {}
    seen: dict[str, weakref.ref[Tensor]] = {}

    def make(name: str) -> Callable[..., Tensor]:
        def function(*args: Tensor) -> Tensor:
            for other, reference in seen.items():
                alive[f"{other} in {name}"] = reference() is not None
            result = args[0] + 1
            seen[name] = weakref.ref(result)
            return result

        return function

    steps = [
        Step("a", make("a"), (Ref("x"),)),
        Step("b", make("b"), (Ref("a"),)),
        Step("unused", make("unused"), (Ref("b"),)),
        Step("c", make("c"), (Ref("b"),)),
        Step("d", make("d"), (Ref("c"),)),
    ]
    run(["x"], steps, ["d"], torch.zeros(1))
    assert alive["a in b"]
    assert not alive["a in unused"]
    assert alive["b in c"]
    assert not alive["unused in c"]
    assert not alive["b in d"]


def test_an_output_is_kept_to_the_end() -> None:
    steps = [
        Step("a", scaled, (Ref("x"),)),
        Step("b", scaled, (Ref("a"),)),
        Step("c", scaled, (Ref("b"),)),
    ]
    a, c = run(["x"], steps, ["a", "c"], torch.ones(1))
    assert (a.item(), c.item()) == (2.0, 8.0)


HOSTILE = '__import__("pathlib").Path("canary").touch()'


@pytest.mark.parametrize(
    "name", [HOSTILE, f"x)\n    {HOSTILE}\n    (", "class", "None", "", "a b", "f0", "v1"]
)
def test_names_are_never_read_as_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = [Step(name, scaled, (Ref("x"),)), Step("end", scaled, (Ref(name), 5.0))]
    assert run(["x"], steps, ["end"], torch.ones(1))[0].item() == 10.0
    given = [Step("end", scaled, (Ref(name),))]
    assert run([name], given, ["end"], torch.ones(1))[0].item() == 2.0
    text = [Step("end", lambda value: value, (name,))]
    assert run([], text, ["end"]) == (name,)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", [HOSTILE, f"by=1.0, y={HOSTILE}", "class", "", "a b", "1"])
def test_a_keyword_that_is_none_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OctavoError, match="is not the name of an operator's argument"):
        run(["x"], [Step("a", scaled, (Ref("x"),), {key: 1.0})], ["a"], torch.ones(1))
    assert not list(tmp_path.iterdir())


def graph_of(*nodes: Node) -> Graph:
    given = Input("x", TensorMeta((None, 3), "float32"))
    return Graph((given,), {}, nodes, {"x": Ref("x")}, Ref(nodes[-1].name))


def test_a_graphs_nodes_are_its_steps() -> None:
    graph = graph_of(Node("a", "aten.relu.default", (Ref("x"),)))
    (step,) = steps_of(graph)
    assert step == Step("a", torch.ops.aten.relu.default, (Ref("x"),), {})


def test_devices_among_the_arguments_follow_the_model() -> None:
    cpu = torch.device("cpu")
    nodes = (
        Node("zeros", "aten.zeros.default", ([3],), {"device": cpu, "pin_memory": False}),
        Node("moved", "aten.to.device", (Ref("x"), cpu, torch.float32)),
    )
    zeros, moved = steps_of(graph_of(*nodes), "meta")
    assert zeros.kwargs == {"device": torch.device("meta"), "pin_memory": False}
    assert moved.args[1] == torch.device("meta")
    assert nodes[0].kwargs["device"] == cpu


def test_an_operator_that_is_not_allowed_has_no_step() -> None:
    with pytest.raises(CaptureError, match=r"os\.system"):
        steps_of(graph_of(Node("a", "os.system", ("true",))))


def test_a_graph_gives_its_results_or_the_values_that_are_named() -> None:
    nodes = (
        Node("half", "aten.mul.Tensor", (Ref("x"), 0.5)),
        Node("sum", "aten.add.Tensor", (Ref("half"), Ref("x"))),
    )
    entry = Input("x", TensorMeta((2,), "float32"))
    graph = Graph((entry,), {}, nodes, {"x": Ref("x")}, [Ref("sum")])
    x = torch.tensor([2.0, 4.0])
    assert [value.tolist() for value in run_of(graph)(x)] == [[3.0, 6.0]]
    named = run_of(graph, outputs=["half", "x"])(x)
    assert [value.tolist() for value in named] == [[1.0, 2.0], [2.0, 4.0]]
