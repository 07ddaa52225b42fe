"""The allow-list: what a graph may call, and what it may not."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

from octavo.errors import CaptureError
from octavo.graph import operators


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
        ("aten.conv2d.default", torch.ops.aten.conv2d.default),
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
