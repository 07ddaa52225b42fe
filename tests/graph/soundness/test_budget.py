"""How much memory and time the graph of a file may take, by what the file itself holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.graph import operators
from octavo.graph.graph import Graph, Input, Node, Ref, TensorMeta
from octavo.graph.soundness import budget, schemas, shapes
from octavo.graph.soundness.budget import Budget


def graph(*shape: int | None, example: tuple[int, ...], **constants: Tensor) -> Graph:
    given = Input("x", TensorMeta(shape, "float32"), example)
    return Graph((given,), constants, (), {"x": Ref("x")}, Ref("x"))


def of(one: Graph) -> Budget:
    given = {i.name: torch.empty(i.sizes, device="meta") for i in one.inputs}
    return Budget.of(one, given | dict(one.constants))


def test_it_grows_with_weights_and_inputs() -> None:
    small = of(graph(None, 8, example=(2, 8)))
    assert small == Budget(2**28 + 2**10 * 64, 2**34 + 2**16 * 64)
    weight = torch.empty(1000, 10)
    assert of(graph(None, 8, example=(2, 8), w=weight)).bytes - small.bytes == 2**10 * 40_000
    assert of(graph(4, 8, example=(4, 8))).bytes == 2**28 + 2**10 * 4 * 8 * 4


def test_an_open_size_costs_a_file_nothing_and_gives_it_little() -> None:
    assert of(graph(None, 8, example=(10**6, 8))).bytes == 2**28 + 2**10 * 64 * 8 * 4
    with pytest.raises(ValueError, match="captured with more than 4294967296 bytes of inputs"):
        of(graph(None, 8, example=(10**9, 8)))


def cost(op: str, *args: Any) -> tuple[int, int]:
    operator: Any = operators.resolve(op)
    values = schemas.bound(operator, args, {})
    return budget.cost_of(op.split(".")[1], values, shapes.result_of(op, operator, values))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("op", "args", "products"),
    [
        ("aten.relu.default", (meta(10, 10),), 0),
        ("aten.linear.default", (meta(5, 7), meta(3, 7)), 5 * 7 * 3),
        ("aten.matmul.default", (meta(2, 5, 7), meta(7, 3)), 2 * 5 * 7 * 3),
        ("aten.bmm.default", (meta(2, 5, 7), meta(2, 7, 3)), 2 * 5 * 7 * 3),
        ("aten.conv2d.default",
         (meta(1, 4, 8, 8), meta(6, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], 2), 6 * 64 * 2 * 9),
        ("aten.conv_transpose2d.input", (meta(1, 4, 8, 8), meta(4, 6, 2, 2)), 4 * 64 * 6 * 4),
        ("aten.scaled_dot_product_attention.default", (meta(1, 2, 5, 4),) * 3, 2 * 5 * 5 * 8),
        ("aten.einsum.default", ("ij,jk->ik", [meta(5, 7), meta(7, 3)]), 5 * 7 * 3),
        ("aten.max_pool2d.default", (meta(1, 1, 8, 8), [2, 2]), 16 * 4),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_products_are_counted(op: str, args: tuple[Any, ...], products: int) -> None:
    tensors = [t for arg in args for t in (arg if isinstance(arg, list) else [arg])]
    read = sum(t.numel() for t in tensors if isinstance(t, Tensor))
    operator: Any = operators.resolve(op)
    made = shapes.result_of(op, operator, schemas.bound(operator, args, {})).numel()
    assert cost(op, *args)[0] == products + read + made


def test_each_step_of_a_sequence_is_counted() -> None:
    weights = [meta(12, 4), meta(12, 3)]
    state = meta(1, 1, 3)
    args = ([state, state], weights, False, 1, 0.0, False, False, False)
    one = cost("aten.lstm.input", meta(1, 1, 4), *args)[0]
    many = cost("aten.lstm.input", meta(1001, 1, 4), *args)[0]
    assert many - one == 1000 * (84 + 2 * 2**12 + 4 + 3)


@pytest.mark.parametrize(
    ("op", "args", "needed"),
    [
        ("aten.add.Tensor", (meta(9), meta(9)), 0),
        # A value for each pair, of which only their sums are results.
        ("aten.cosine_similarity.default", (meta(9, 1, 5), meta(1, 7, 5), 2), 9 * 7 * 9),
        ("aten.mse_loss.default", (meta(9, 1), meta(7)), 9 * 7),
        ("aten.einsum.default", ("a,b,c->a", [meta(5), meta(6), meta(7)]), 5 * 6 * 7),
        ("aten.scaled_dot_product_attention.default", (meta(1, 2, 5, 4),) * 3, 2 * 5 * 5),
        ("aten.conv2d.default", (meta(1, 4, 8, 8, dtype=torch.float64),
                                 meta(6, 4, 3, 3, dtype=torch.float64)), 36 * 36),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_needed_meanwhile_is_counted(op: str, args: Any, needed: int) -> None:
    size = 8 if "conv" in op else 4
    assert cost(op, *args)[1] == needed * size


def test_what_is_needed_at_the_same_time() -> None:
    def node(name: str, *read: str) -> Node:
        return Node(name, "aten.cat.default", ([Ref(name) for name in read],))

    chain = (node("a", "x"), node("b", "a"), node("c", "b"))
    fan = (node("a", "x"), node("b", "x"), node("c", "a", "b"))
    values = {name: meta(100) for name in ("x", "a", "b", "c")}
    base = graph(None, example=(100,))
    for nodes, needed in ((chain, 800), (fan, 1200)):
        one = Graph(base.inputs, {}, nodes, {"x": Ref("x")}, Ref("c"))
        Budget(needed, 0).check_together(one, values)
        with pytest.raises(ValueError, match=f"needs {needed} bytes"):
            Budget(needed - 1, 0).check_together(one, values)
