"""torch's quantized dtypes and schemes, read by their names: they are being removed from torch.

As long as torch has them, defaults are torch's own objects; afterwards plain dtypes and text.
"""

from __future__ import annotations

from typing import Any

import torch

from octavo.errors import PlanError
from octavo.numerics.dtypes import QDTYPES, qdtype
from octavo.numerics.scheme import Scheme

QUINT8: Any = getattr(torch, "quint8", torch.uint8)
QINT8: Any = getattr(torch, "qint8", torch.int8)
QUINT4X2: Any = getattr(torch, "quint4x2", "quint4x2")
PER_TENSOR_AFFINE: Any = getattr(torch, "per_tensor_affine", "per_tensor_affine")
PER_TENSOR_SYMMETRIC: Any = getattr(torch, "per_tensor_symmetric", "per_tensor_symmetric")
PER_CHANNEL_AFFINE: Any = getattr(torch, "per_channel_affine", "per_channel_affine")
PER_CHANNEL_SYMMETRIC: Any = getattr(torch, "per_channel_symmetric", "per_channel_symmetric")
PER_CHANNEL_FLOAT_QPARAMS: Any = getattr(
    torch, "per_channel_affine_float_qparams", "per_channel_affine_float_qparams"
)

# Arguments of observers, for the rows of the tables of defaults.
UINT8: dict[str, Any] = {"quant_min": 0, "quant_max": 255, "dtype": QUINT8}
INT8: dict[str, Any] = {"quant_min": -128, "quant_max": 127, "dtype": QINT8}
NARROW: dict[str, Any] = {"quant_min": -127, "quant_max": 127}
HALF: dict[str, Any] = {"quant_min": 0, "quant_max": 127}  # of uint8: the other bit is not used

_INTEGERS = {
    "quint8": "uint8",
    "uint8": "uint8",
    "qint8": "int8",
    "int8": "int8",
    "quint4x2": "uint4",
    "int16": "int16",
}
# (per channel, symmetric). The zero points of float qparams are rounded to integers.
_SCHEMES = {
    "per_tensor_affine": (False, False),
    "per_tensor_symmetric": (False, True),
    "per_channel_affine": (True, False),
    "per_channel_symmetric": (True, True),
    "per_channel_affine_float_qparams": (True, False),
}


def name_of(value: Any) -> str:
    """``"quint8"`` of ``torch.quint8``."""
    return str(value).removeprefix("torch.")


def integers_of(dtype: Any) -> str:
    """The name of Octavo's integer type.

    Raises:
        PlanError: the dtype is none that holds quantized values here.
    """
    name = name_of(dtype)
    if name not in _INTEGERS:
        raise PlanError(
            f"dtype {dtype} is not one that Octavo quantizes to: take torch.quint8 or torch.qint8; "
            "for half precision use model.half() or model.bfloat16()"
        )
    return _INTEGERS[name]


def scheme_of(
    dtype: Any,
    qscheme: Any,
    reduce_range: bool = False,
    quant_min: int | None = None,
    quant_max: int | None = None,
    ch_axis: int = 0,
) -> Scheme:
    """A scheme from the arguments of an observer.

    Raises:
        PlanError: Octavo has no such scheme.
    """
    if name_of(qscheme) not in _SCHEMES:
        raise PlanError(f"qscheme is {qscheme!r}; one of {['torch.' + n for n in _SCHEMES]}")
    per_channel, symmetric = _SCHEMES[name_of(qscheme)]
    axis = ch_axis if per_channel else None
    name = integers_of(dtype)
    if quant_min is None or quant_max is None:
        return Scheme(name, symmetric, axis, reduce_range=reduce_range)
    if reduce_range:
        quant_min, quant_max = quant_min // 2, quant_max // 2
    scheme = _with_range(name, quant_min, quant_max, symmetric, axis)
    if symmetric and not scheme.integers.signed:
        raise PlanError(
            f"symmetric with the unsigned range {quant_min}..{quant_max} has no exact middle: take "
            "dtype=torch.qint8, or leave out quant_min and quant_max"
        )
    return scheme


def _with_range(name: str, low: int, high: int, symmetric: bool, axis: int | None) -> Scheme:
    """The scheme that has exactly these integers."""
    signed = qdtype(name).signed
    for narrow in (False, True) if signed else (False,):
        for other in sorted(QDTYPES, key=lambda n: -QDTYPES[n].bits):
            if QDTYPES[other].signed != signed or (narrow and QDTYPES[other].bits < 3):
                continue
            scheme = Scheme(other, symmetric, axis, narrow_range=narrow)
            if (scheme.qmin, scheme.qmax) == (low, high):
                return scheme
    raise PlanError(
        f"quant_min={low}, quant_max={high} of {name} is not a range of Octavo's integers; take "
        "that of "
        f"{', '.join(n for n in QDTYPES if QDTYPES[n].signed == signed)}, narrow or not"
    )
