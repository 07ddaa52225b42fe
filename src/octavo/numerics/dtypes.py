"""The integer types that tensors are quantized to.

Tested in tests/numerics/test_scheme.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.errors import PlanError


@dataclass(frozen=True)
class QDType:
    """An integer type: its name, its inclusive range, and the torch dtype that holds it.

    Fewer bits than eight are held in a byte each while they are computed with; weights of four
    bits or fewer are kept two to a byte, see `octavo.numerics.octavo_operators.unpack_int4`.

    Example:
        >>> INT8.qmin, INT8.qmax, INT8.bits
        (-128, 127, 8)
    """

    name: str
    qmin: int
    qmax: int
    storage: torch.dtype

    @property
    def bits(self) -> int:
        return (self.qmax - self.qmin + 1).bit_length() - 1

    @property
    def signed(self) -> bool:
        return self.qmin < 0


def _signed(bits: int) -> QDType:
    return QDType(f"int{bits}", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, torch.int8)


def _unsigned(bits: int) -> QDType:
    return QDType(f"uint{bits}", 0, 2**bits - 1, torch.uint8)


INT16 = QDType("int16", -32768, 32767, torch.int16)

QDTYPES = {
    dtype.name: dtype for dtype in (*map(_signed, range(2, 9)), *map(_unsigned, range(2, 9)), INT16)
}
INT4, UINT4, INT8, UINT8 = (QDTYPES[name] for name in ("int4", "uint4", "int8", "uint8"))


def qdtype(name: str) -> QDType:
    """The type of this name.

    Raises:
        PlanError: there is no such type.
    """
    try:
        return QDTYPES[name]
    except (KeyError, TypeError):  # the latter of what cannot be a key
        raise PlanError(f"unknown quantized dtype {name!r}; one of {sorted(QDTYPES)}") from None
