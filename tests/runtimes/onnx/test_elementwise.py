"""Arithmetic, comparisons, logic and casts as ONNX: what torch gives."""

from __future__ import annotations

import pytest
import torch


def floats(*shape):
    return torch.randn(*(shape or (2, 3, 4)))


def integers(*shape):
    return torch.randint(-7, 8, shape or (2, 3, 4))


def truths(*shape):
    return torch.rand(*(shape or (2, 3, 4))) > 0.5


OF_ONE = {
    "all": (
        """
        neg abs sign exp sin cos tan atan sinh cosh asinh erf erfc floor ceil round trunc frac
        square expm1 exp2 isnan isinf isfinite logical_not
        """,
        lambda: 2 * floats(),
    ),
    "positive numbers": (
        "sqrt rsqrt log log2 log10 log1p reciprocal acosh",
        lambda: floats().abs() + 1,
    ),
    "numbers within one": ("asin acos atanh", lambda: torch.rand(2, 5) - 0.5),
    "integers": (
        "neg abs sign exp sqrt cos square bitwise_not logical_not reciprocal",
        lambda: integers().abs() + 1,
    ),
    "truths": ("logical_not bitwise_not", truths),
}


@pytest.mark.parametrize("group", OF_ONE)
def test_functions_of(group, agrees):
    names, make = OF_ONE[group]
    agrees(lambda x: {name: getattr(torch, name)(x) for name in names.split()}, make())


OF_TWO = {
    "add": lambda x, y: x + y,
    "add alpha": lambda x, y: torch.add(x, y, alpha=3),
    "add no alpha": lambda x, y: torch.add(x, y, alpha=0),
    "sub": lambda x, y: x - y,
    "sub alpha": lambda x, y: torch.sub(x, y, alpha=2),
    "rsub": lambda x, y: torch.rsub(x, y, alpha=2),
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (y * y + 1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "remainder": lambda x, y: torch.remainder(x, y.abs() + 1),
    "remainder of a negative": lambda x, y: x % (-y.abs() - 1),
    "fmod": lambda x, y: torch.fmod(x, y.abs() + 1),
    "floor division": lambda x, y: x // (y.abs() + 1),
    "floor division by a negative": lambda x, y: torch.div(x, -y.abs() - 1, rounding_mode="floor"),
    "truncated division": lambda x, y: torch.div(x, -y.abs() - 1, rounding_mode="trunc"),
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "logical and": torch.logical_and,
    "logical or": torch.logical_or,
    "logical xor": torch.logical_xor,
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=2),
    "clamp to tensors": lambda x, y: torch.clamp(x, y - 1, y + 1),
    "clamp from a tensor": lambda x, y: torch.clamp(x, min=y),
    "where": lambda x, y: torch.where(x > y, x, y),
    "where a number": lambda x, y: torch.where(x > y, x, 2),
    "masked fill": lambda x, y: x.masked_fill(x > y, 3),
    "broadcast": lambda x, y: x[:, :1] + y[:, :, :1],
}


@pytest.mark.parametrize("make", [floats, integers], ids=["floats", "integers"])
def test_operators_of_two_tensors(make, agrees):
    agrees(lambda x, y: {name: compute(x, y) for name, compute in OF_TWO.items()}, make(), make())


OTHERS = {
    floats: {
        "add a number": lambda x: x + 2,
        "number minus tensor": lambda x: 2 - x,
        "number by tensor": lambda x: 2 / x,
        "square": lambda x: x**2,
        "root": lambda x: x.abs() ** 0.5,
        "cube": lambda x: x**3,
        "number to a power": lambda x: 2**x,
        "power of tensors": lambda x: x.abs() ** x,
        "clamp": lambda x: x.clamp(-0.5, 0.5),
        "clamp from above": lambda x: x.clamp(max=0.5),
        "clamp from below": lambda x: x.clamp(min=-0.5),
        "clamp max": lambda x: torch.clamp_max(x, 0.5),
        "clamp min": lambda x: torch.clamp_min(x, 0.5),
        "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5),
        "lerp": lambda x: torch.lerp(x, x.flip(0), 0.3),
        "lerp by a tensor": lambda x: torch.lerp(x, x + 1, x),
        "where to an infinity": lambda x: torch.where(x > 0, 0.0, -float("inf")),
        "to integers": lambda x: (9 * x).to(torch.int64),
        "to another's dtype": lambda x: (9 * x).type_as(x.long()),
        "to doubles": lambda x: x.double() / 3,
        "to halves": lambda x: x.half(),
    },
    integers: {
        "a float to integers": lambda x: x + 2.5,
        "integers divided": lambda x: x / 2,
        "power of integers": lambda x: x**3,
        "clamp integers": lambda x: x.clamp(-2, 3),
        "clamp integers to floats": lambda x: x.clamp(-2.5, 3.5),
        "compare with an infinity": lambda x: x > -float("inf"),
        "compare integers with a float": lambda x: x > 1.5,
        "bytes compared": lambda x: x.to(torch.int8) > x.flip(1).to(torch.int8),
        "mixed dtypes compared": lambda x: x.to(torch.int32) == x,
        "bitwise of integers": lambda x: (x & x.flip(1)) | (x ^ 5),
        "where of bytes": lambda x: torch.where(x > 0, x, 1).to(torch.int8),
        "to truths": lambda x: x.bool(),
    },
    truths: {
        "truths added": lambda x: x + x.flip(1),
        "truths times a number": lambda x: x * 3.0,
        "compare truths with a number": lambda x: x == 2,
        "order of truths": lambda x: x < x.flip(1),
        "equal truths": lambda x: x == x.flip(1),
        "bitwise of truths": lambda x: (x & x.flip(1)) | (x ^ x.flip(2)),
        "not": lambda x: ~x,
        "where of truths": lambda x: torch.where(x, x.flip(1), x.flip(2)),
        "masked fill of truths": lambda x: x.masked_fill(x.flip(1), True),
    },
}


@pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
def test_other_forms(make, agrees):
    agrees(lambda x: {name: compute(x) for name, compute in OTHERS[make].items()}, make())


REFUSED = {
    "decimals": (lambda x: torch.round(x, decimals=2), "scale before"),
    "inverse error function": (torch.erfinv, "reference"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_named(name, names_the_way_out):
    names_the_way_out(*REFUSED[name], floats())
