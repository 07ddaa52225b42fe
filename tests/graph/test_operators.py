"""The allow-list: what a graph may call, and what it may not."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

from octavo.errors import CaptureError
from octavo.graph import operators
from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments, with_arguments


def overloads(name: str) -> list[Any]:
    packet = getattr(torch.ops.aten, name)
    return [getattr(packet, overload) for overload in packet.overloads()]


def allowed(overload: Any) -> bool:
    try:
        found = operators.resolve(operators.name_of(overload))
        return getattr(found, "overload", found) is overload  # what is guarded is that one too
    except CaptureError:
        return False


@pytest.fixture(scope="module")
def all_allowed() -> list[Any]:
    """Every overload that a graph may call."""
    return [o for name in operators.ATEN for o in overloads(name) if allowed(o)]


def test_every_name_on_the_list_is_an_operator() -> None:
    missing = {n for n in operators.ATEN if not any(map(allowed, overloads(n)))}
    assert not missing


def test_no_operator_on_the_list_writes_to_its_arguments(all_allowed: list[Any]) -> None:
    assert len(all_allowed) > 300
    assert not [str(o) for o in all_allowed if o._schema.is_mutable]


def test_every_operator_on_the_list_works_on_tensors(all_allowed: list[Any]) -> None:
    """Lists and text can be made to grow without end."""
    values = [(o, (*o._schema.arguments, *o._schema.returns)) for o in all_allowed]
    assert not [str(o) for o, of in values if not any("Tensor" in str(v.type) for v in of)]


@pytest.mark.parametrize("function", operators.PYTHON.values(), ids=operators.PYTHON)
def test_python_operators_have_a_name(function: Any) -> None:
    assert operators.resolve(operators.name_of(function)) is function


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("aten.conv1d.default", torch.ops.aten.conv1d.default),
        ("aten.add.Tensor", torch.ops.aten.add.Tensor),
        ("octavo.quantize.default", torch.ops.octavo.quantize.default),
        ("python.getitem", operator.getitem),
    ],
)
def test_names_resolve(name: str, function: Any) -> None:
    assert operators.resolve(name) is function
    assert operators.name_of(function) == name


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",  # reads a file
        "aten.relu_.default",  # writes to its argument
        "aten.add.out",
        "aten.set_.source_Tensor",
        "aten.mul.left_t",  # makes lists longer
        "aten.to.prim_dtype",  # takes a dtype as a number, unchecked
        "aten.eq.Tensor_list",
        "aten.lstm.data",
        "aten.add.str",
        "aten.quantize_per_tensor.default",
        "quantized.conv2d.new",
        "onednn.qconv2d_pointwise.default",
        "torchvision.nms.default",
        "prims.add.default",
        "octavo.nope.default",
        "octavo.quantize",
        "aten.conv2d",
        "aten.conv2d.nope",
        "aten.conv2d.default.default",
        "aten.conv2d.__class__",
        "aten.__class__.default",
        "python.eval",
        "python.exec",
        "python.__import__",
        "python.getitem.default",
        "os.system",
        "builtins.eval.default",
        "torch.load",
        "..",
        "",
    ],
)
def test_all_other_names_are_refused(name: str) -> None:
    with pytest.raises(CaptureError, match="is not one that Octavo runs"):
        operators.resolve(name)


def test_operators_of_python_have_one_name_with_torchs_functions() -> None:
    for name in ("and", "or", "xor"):
        for overload in ("Tensor", "Scalar"):
            target = getattr(getattr(torch.ops.aten, f"__{name}__"), overload)
            assert operators.name_of(target) == f"aten.bitwise_{name}.{overload}"
            assert operators.resolve(operators.name_of(target))
    assert operators.name_of(torch.ops.aten.__iand__.Tensor) == "aten.__iand__.Tensor"


def test_what_has_no_name_here_is_named_for_the_error() -> None:
    assert operators.name_of(torch.sym_sqrt if hasattr(torch, "sym_sqrt") else pow)
    assert operators.name_of(pow) == "pow"


X, W, B = Ref("x"), Ref("w"), Ref("b")


def test_arguments_have_names_and_defaults() -> None:
    conv = Node("y", "aten.conv2d.default", (X, W, None, [2, 2]), {"groups": 4})
    assert arguments(conv) == {
        "input": X,
        "weight": W,
        "bias": None,
        "stride": [2, 2],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 4,
    }
    lstm = Node("y", "aten.lstm.input", (X, [X], [W], True, 1, 0.0, True, False, False))
    assert arguments(lstm)["train"] is True  # an operator whose arguments are checked at each call


@pytest.mark.parametrize(
    ("args", "kwargs", "changed", "wanted"),
    [
        ((X, W), {}, {"bias": B}, ((X, W, B), {})),
        ((X, W, None, [2]), {}, {"bias": B}, ((X, W, B, [2]), {})),
        ((X, W), {"bias": None}, {"bias": B}, ((X, W, B), {})),
        (
            (X, W),
            {},
            {"padding": [1]},
            ((X, W, None, [1, 1], [1]), {}),
        ),  # what is before has a place
        ((X, W), {"stride": [2]}, {"padding": [1]}, ((X, W, None, [2], [1]), {})),
        ((X, W), {"groups": 2}, {"input": B}, ((B, W), {"groups": 2})),
        ((X, W), {"groups": 2}, {}, ((X, W), {"groups": 2})),
    ],
)
def test_arguments_are_replaced_in_their_places(
    args: Any, kwargs: Any, changed: Any, wanted: Any
) -> None:
    node = Node("y", "aten.conv2d.default", args, kwargs)
    found = with_arguments(node, **changed)
    assert (found.args, found.kwargs) == wanted
    assert arguments(found) == arguments(node) | changed
    assert node.args == args


def test_arguments_that_have_no_place_stay_keywords() -> None:
    attention = Node("y", "aten.scaled_dot_product_attention.default", (X, X, X))
    assert with_arguments(attention, scale=2.0).kwargs == {"scale": 2.0}
    masked = with_arguments(attention, attn_mask=B, scale=2.0)
    assert (masked.args, masked.kwargs) == ((X, X, X, B), {"scale": 2.0})
    assert with_arguments(masked, scale=3.0).kwargs == {"scale": 3.0}


def test_arguments_that_an_operator_has_not_are_refused() -> None:
    with pytest.raises(AssertionError, match="no argument of \\['wait'\\]"):
        with_arguments(Node("y", "aten.relu.default", (X,)), wait=B)
