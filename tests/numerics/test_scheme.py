"""Schemes: the integers in use, and what a scheme says of itself."""

from __future__ import annotations

import pytest
import torch

from octavo.errors import PlanError
from octavo.numerics.dtypes import INT8, QDTYPES, UINT8, qdtype
from octavo.numerics.scheme import Scheme


@pytest.mark.parametrize(
    ("scheme", "qmin", "qmax"),
    [
        (Scheme("uint8"), 0, 255),
        (Scheme("int8"), -128, 127),
        (Scheme("int8", narrow_range=True), -127, 127),
        (Scheme("uint8", reduce_range=True), 0, 127),
        (Scheme("int8", reduce_range=True), -64, 63),
        (Scheme("int8", narrow_range=True, reduce_range=True), -63, 63),
        (Scheme("int4"), -8, 7),
        (Scheme("uint4"), 0, 15),
        (Scheme("int16"), -32768, 32767),
    ],
)
def test_the_range_follows_from_type_and_flags(scheme: Scheme, qmin: int, qmax: int) -> None:
    assert (scheme.qmin, scheme.qmax) == (qmin, qmax)
    assert scheme.integers.qmin <= scheme.qmin < scheme.qmax <= scheme.integers.qmax


def test_types_know_their_storage() -> None:
    for name, dtype in QDTYPES.items():
        info = torch.iinfo(dtype.storage)
        assert dtype.name == name
        assert dtype.bits == int(name.removeprefix("u").removeprefix("int"))
        assert info.min <= dtype.qmin < dtype.qmax <= info.max
        assert (dtype.qmin, dtype.qmax) == (info.min, info.max) or dtype.bits < info.bits
    assert INT8.signed
    assert not UINT8.signed
    assert qdtype("int8") is INT8


@pytest.mark.parametrize("name", ["int9", "int1", "", "INT8", None])
def test_an_unknown_type_is_an_error_that_lists_the_known(name: str) -> None:
    with pytest.raises(PlanError, match=r"unknown quantized dtype .*'int8', 'uint2', .*'uint8'\]"):
        Scheme(name)


def test_one_integer_is_too_few() -> None:
    assert Scheme("int2", reduce_range=True).qmax == 0
    with pytest.raises(PlanError, match="int2 with narrow_range and reduce_range holds one"):
        Scheme("int2", narrow_range=True, reduce_range=True)


def test_narrow_range_needs_a_signed_type() -> None:
    with pytest.raises(PlanError, match="narrow_range needs a signed dtype, not uint8"):
        Scheme("uint8", narrow_range=True)


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (Scheme(), "uint8 per-tensor affine"),
        (Scheme("int8", symmetric=True, channel_axis=0), "int8 per-channel symmetric"),
        (Scheme("uint8", reduce_range=True), "uint8 per-tensor affine, 7-bit"),
        (Scheme("uint4", group_size=32), "uint4 per-group-of-32 affine"),
        (Scheme("uint8", per_token=True), "uint8 per-token affine"),
        (
            Scheme("int8", symmetric=True, power_of_two=True),
            "int8 per-tensor symmetric, power-of-two scale",
        ),
    ],
)
def test_reads_as_words(scheme: Scheme, text: str) -> None:
    assert str(scheme) == text


def test_round_trips_as_a_dict_and_is_a_value() -> None:
    scheme = Scheme("int8", symmetric=True, channel_axis=1, narrow_range=True, reduce_range=True)
    assert Scheme(**scheme.to_dict()) == scheme
    assert hash(Scheme(**scheme.to_dict())) == hash(scheme)
    assert Scheme(**scheme.to_dict()) != Scheme("int8")


@pytest.mark.parametrize(
    "settings",
    [
        {"channel_axis": 0, "group_size": 32},
        {"channel_axis": 0, "per_token": True},
        {"group_size": 32, "per_token": True},
    ],
)
def test_a_tensor_has_one_granularity(settings: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="exclude each other; give one of them"):
        Scheme("int8", **settings)  # type: ignore[arg-type]


def test_a_group_has_a_value_at_least() -> None:
    with pytest.raises(PlanError, match="group_size is 0"):
        Scheme("int4", group_size=0)
