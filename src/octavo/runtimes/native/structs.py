"""The structs of a program's steps, as native/octavo.h declares them.

Tested in tests/runtimes/native/test_program.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from octavo.runtimes.integers import Integers
from octavo.runtimes.native.attention import AttentionStruct
from octavo.runtimes.native.convolution import ConvolutionStruct, OperandsStruct, ShapeStruct
from octavo.runtimes.native.matrix import MatrixStruct, ReadingStruct
from octavo.runtimes.native.normalization import NormalizationStruct

MOST_AXES = 8  # of what is moved
MOST_PLACES = 6  # of a step
LANES = 16  # of a vector; rows of floats are a multiple
WORTH_A_CHUNK = 2**10  # values of a row that are worth another thread's while


class Kind(IntEnum):
    """What a step does: a member of `Of` each."""

    CONVOLVE = 0
    POOL = 1
    QUANTIZE = 2
    DEQUANTIZE = 3
    LOOK_UP = 4
    COMBINE = 5
    MOVE = 6
    CALCULATE = 7
    NORMALIZE = 8
    PACK_HEADS = 9
    ATTEND = 10
    ADD_UP = 11
    GATHER = 12
    ROUND_ROWS = 13
    MULTIPLY_ROWS = 14
    ACTIVATE = 15
    PACK_FLOAT_HEADS = 16
    ATTEND_TO_FLOATS = 17


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class IntegersStruct(ctypes.Structure):
    """``octavo_integers`` of native/octavo.h."""

    _fields_ = [("scale", ctypes.c_float), *_fields(ctypes.c_int32, "zero_point low high")]

    @classmethod
    def of(cls, integers: Integers) -> IntegersStruct:
        return cls(integers.scale, integers.zero_point, integers.low, integers.high)


_WINDOW = "kernel_height kernel_width stride_y stride_x padding_top padding_left"


class Pooling(ctypes.Structure):
    """``octavo_pooling``."""

    _fields_ = [
        ("at", OperandsStruct),
        *_fields(ShapeStruct, "input output"),
        *_fields(ctypes.c_int64, f"operation {_WINDOW} dilation_y dilation_x divisor"),
        *_fields(IntegersStruct, "in_integers out_integers"),
    ]


_Strides = ctypes.c_int64 * 4
_Axes = ctypes.c_int64 * MOST_AXES


class Quantize(ctypes.Structure):
    """``octavo_quantize``."""

    _fields_ = [
        ("at", OperandsStruct),
        ("shape", ShapeStruct),
        ("x_strides", _Strides),
        ("out", IntegersStruct),
    ]


class Dequantize(ctypes.Structure):
    """``octavo_dequantize``."""

    _fields_ = [
        ("at", OperandsStruct),
        ("count", ctypes.c_int64),
        ("in_", IntegersStruct),
    ]


class LookUp(ctypes.Structure):
    """``octavo_look_up``."""

    _fields_ = [("at", OperandsStruct), ("count", ctypes.c_int64), ("table", ctypes.c_void_p)]


class Binary(ctypes.Structure):
    """``octavo_binary``."""

    _fields_ = [
        ("at", OperandsStruct),
        ("shape", ShapeStruct),
        *_fields(_Strides, "x_strides other_strides"),
        ("operation", ctypes.c_int64),
        *_fields(IntegersStruct, "x_integers other_integers out"),
    ]


class Arithmetic(ctypes.Structure):
    """``octavo_arithmetic``."""

    _fields_ = [
        ("at", OperandsStruct),
        ("shape", ShapeStruct),
        *_fields(_Strides, "x_strides other_strides"),
        ("operation", ctypes.c_int64),
    ]


class Total(ctypes.Structure):
    """``octavo_total``."""

    _fields_ = [
        ("at", OperandsStruct),
        *_fields(ctypes.c_int64, "outer count inner"),
        ("divisor", ctypes.c_float),
    ]


class Gather(ctypes.Structure):
    """``octavo_gather``."""

    _fields_ = [
        ("at", OperandsStruct),
        *_fields(ctypes.c_int64, "count width"),
        *_fields(ctypes.c_void_p, "table scales zero_points"),
    ]


class DynamicLinear(ctypes.Structure):
    """``octavo_dynamic_linear``."""

    _fields_ = [
        ("at", OperandsStruct),
        *_fields(ctypes.c_int64, "count width"),
        ("reading", ReadingStruct),
        ("matrix", MatrixStruct),
    ]


class Activated(ctypes.Structure):
    """``octavo_activation``."""

    _fields_ = [("at", OperandsStruct), *_fields(ctypes.c_int64, "count activation")]


class Move(ctypes.Structure):
    """``octavo_move``."""

    _fields_ = [
        ("at", OperandsStruct),
        *_fields(_Axes, "sizes x_strides y_strides"),
        ("bytes", ctypes.c_int64),
    ]


class Of(ctypes.Union):
    """By kind, in the order of `Kind`."""

    _fields_ = [
        ("convolution", ConvolutionStruct),
        ("pooling", Pooling),
        ("quantize", Quantize),
        ("dequantize", Dequantize),
        ("look_up", LookUp),
        ("binary", Binary),
        ("move", Move),
        ("arithmetic", Arithmetic),
        ("normalization", NormalizationStruct),
        ("packing", AttentionStruct),
        ("attention", AttentionStruct),
        ("total", Total),
        ("gather", Gather),
        ("rounding_rows", DynamicLinear),
        ("multiplying_rows", DynamicLinear),
        ("activation", Activated),
        ("packing_floats", AttentionStruct),
        ("attention_to_floats", AttentionStruct),
    ]


class Place(ctypes.Structure):
    """Bytes behind one of the addresses that a call is given, for the pointer that stands so many
    bytes within a step's struct; none where the base is -1.
    """

    _fields_ = _fields(ctypes.c_int64, "base offset field")


Places = Place * MOST_PLACES


class Step(ctypes.Structure):
    """``octavo_step``."""

    _fields_ = [*_fields(ctypes.c_int64, "kind chunks"), ("places", Places), ("of", Of)]


class SlicesStruct(ctypes.Structure):
    """``octavo_slices``."""

    _fields_ = [
        ("steps", ctypes.c_void_p),
        *_fields(ctypes.c_int64, "count parts arena base_count"),
        ("pitches", ctypes.c_void_p),
    ]


def offset_of(struct: Any, name: str) -> int:
    """Where a field stands in a struct, or in the operands in front of it; a dot stands in front of
    a field of a struct within.
    """
    first, _, rest = name.partition(".")
    holder = struct if hasattr(struct, first) else OperandsStruct
    start = int(getattr(holder, first).offset)
    return start + offset_of(dict(struct._fields_)[first], rest) if rest else start


def strides_of(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Of four axes."""
    return _Strides(*values)


def axes_of(values: Sequence[int], missing: int) -> ctypes.Array[ctypes.c_int64]:
    """For all axes of a move: those in front that are missing."""
    return _Axes(*[missing] * (MOST_AXES - len(values)), *values)


def copy_of(struct: Any) -> Any:
    """The same fields in memory of their own."""
    return type(struct).from_buffer_copy(struct)
