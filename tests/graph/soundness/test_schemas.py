"""What an operator takes from a file: kinds and values of arguments."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

from octavo.graph import operators
from octavo.graph.soundness import schemas

ATEN = torch.ops.aten
X = torch.empty(2, 3, device="meta")


def test_arguments_are_named_and_completed() -> None:
    given = schemas.bound(ATEN.softmax.int, (X,), {"dim": 1})
    assert given == {"self": X, "dim": 1, "dtype": None}
    assert schemas.bound(ATEN.avg_pool2d.default, (X, [2, 2]), {})["ceil_mode"] is False


@pytest.mark.parametrize(
    ("overload", "args", "kwargs"),
    [
        (ATEN.to.dtype, (X, torch.int8), {}),
        (ATEN.add.Tensor, (X, 2.5), {}),  # a number for a tensor without axes
        (ATEN.zeros.default, ([2, 3],), {"layout": torch.strided, "pin_memory": False}),
        (ATEN.clone.default, (X,), {"memory_format": torch.channels_last}),
        (ATEN.to.device, (X, torch.device("cpu"), torch.float32), {}),
        (ATEN.slice.Tensor, (X, 0, 1, 2**63 - 1), {}),
        (ATEN.masked_fill.Scalar, (X, X, float("-inf")), {}),
        (ATEN.masked_fill.Scalar, (X, X, -(2**63) + 1), {}),
        (ATEN.index.Tensor, (X, [None, X]), {}),
        (ATEN.max_pool2d.default, (X, 3), {}),  # one size for both axes
        (ATEN.div.Tensor_mode, (X, X), {"rounding_mode": "floor"}),
        (ATEN.einsum.default, ("b h i d, b h j d -> b h i j", [X, X]), {}),
        (ATEN.split_with_sizes.default, (X, [1] * 1000), {}),
        (ATEN.cat.default, ([X] * 1000,), {}),
    ],
)
def test_what_models_hold_is_taken(overload: Any, args: Any, kwargs: Any) -> None:
    assert schemas.bound(overload, args, kwargs)


@pytest.mark.parametrize(
    ("overload", "args", "kwargs"),
    [
        (ATEN.to.dtype, (X, 6), {}),
        (ATEN.to.dtype, (X, torch.quint8), {}),
        (ATEN.view.dtype, (X, -1), {}),
        (ATEN.zeros.default, ([2],), {"layout": torch.sparse_coo}),
        (ATEN.zeros.default, ([2],), {"layout": 1}),
        (ATEN.zeros.default, ([2],), {"pin_memory": True}),
        (ATEN.zeros.default, ([2],), {"device": "cuda"}),
        (ATEN.zeros.default, ([2**41],), {}),
        (ATEN.zeros.default, ([-(2**63)],), {}),
        (ATEN.zeros.default, ([1] * 65,), {}),
        (ATEN.zeros.default, (["2"],), {}),
        (ATEN.zeros.default, ([2.0],), {}),
        (ATEN.clone.default, (X,), {"memory_format": 9}),
        (ATEN.relu.default, ([X],), {}),
        (ATEN.relu.default, ("x",), {}),
        (ATEN.cat.default, ([X] * (2**14 + 1),), {}),
        (ATEN.roll.default, (X, [1] * 10**6, [0] * 10**6), {}),
        (ATEN.softmax.int, (X, None), {}),
        (ATEN.softmax.int, (X, 1.0), {}),
        (ATEN.add.Tensor, (X, 2**64), {}),
        (ATEN.add.Tensor, (X, 1j), {}),
        (ATEN.sum.dim_IntList, (X, [0], 1), {}),  # a number for a truth
        (ATEN.pad.default, (X, [1, 1], "code"), {}),
        (ATEN.gelu.default, (X,), {"approximate": "x" * 10**6}),
        (ATEN.einsum.default, ("ij,jk->" + "a" * 10**6, [X, X]), {}),
        (ATEN.einsum.default, ("%d", [X]), {}),
        (ATEN.relu.default, (), {}),
        (ATEN.relu.default, (X, X), {}),
        (ATEN.relu.default, (X,), {"self": X}),
        (ATEN.relu.default, (X,), {"nope": X}),
    ],
)
def test_what_is_foreign_is_refused(overload: Any, args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError):
        schemas.bound(overload, args, kwargs)


def test_every_allowed_operator_has_kinds_that_are_known() -> None:
    kinds = set()
    for name in operators.ATEN:
        packet = getattr(ATEN, name)
        for overload in packet.overloads():
            if f"{name}.{overload}" in operators.REFUSED:
                continue
            schema = getattr(packet, overload)._schema
            if schema.is_mutable or not operators._is_on_tensors(schema):
                continue
            for argument in schema.arguments:
                kind = str(argument.real_type)
                for outer in ("Optional", "List", "Optional"):
                    _, kind = schemas._stripped(outer, kind)
                kinds.add(kind)
    assert kinds == set(schemas._KINDS)


def test_arithmetic_on_sizes() -> None:
    assert schemas.sizes(operator.mul, (6, 7), {}) == 42
    for args in ((2**62, 4), ("x", 3), ([0], 9), (float("nan"), 1), (1e308, 1e308), (None, 1)):
        with pytest.raises(TypeError, match="is not a size"):
            schemas.sizes(operator.mul, args, {})
