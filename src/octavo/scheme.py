"""How one tensor is quantized: type, symmetry, granularity, range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.dtypes import QDType, qdtype
from octavo.errors import PlanError


@dataclass(frozen=True)
class Scheme:
    """A quantization scheme.

    Attributes:
        dtype: name of the integer type, ``"int8"`` or ``"uint8"``.
        symmetric: the range is centred on zero and the zero point is fixed (0 for a signed type,
            the middle for an unsigned one); otherwise affine.
        channel_axis: ``None`` for one scale per tensor, else the axis with one scale per channel.
        narrow_range: leave out the lowest integer, so that a signed range is symmetric
            (-127..127 for int8).
        reduce_range: one bit less, for kernels that saturate in int16 (CPUs without VNNI).

    Example:
        >>> Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True).qmin
        -127
        >>> str(Scheme("uint8", reduce_range=True))
        'uint8 per-tensor affine, 7-bit'
    """

    dtype: str = "uint8"
    symmetric: bool = False
    channel_axis: int | None = None
    narrow_range: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        qdtype(self.dtype)
        if self.narrow_range and not self.integers.signed:
            raise PlanError(f"narrow_range needs a signed dtype, not {self.dtype}")

    @property
    def integers(self) -> QDType:
        return qdtype(self.dtype)

    @property
    def qmin(self) -> int:
        """The lowest integer in use."""
        low = self.integers.qmin // 2 if self.reduce_range else self.integers.qmin
        return low + self.narrow_range

    @property
    def qmax(self) -> int:
        """The highest integer in use."""
        return self.integers.qmax // 2 if self.reduce_range else self.integers.qmax

    def __str__(self) -> str:
        where = "per-tensor" if self.channel_axis is None else "per-channel"
        kind = "symmetric" if self.symmetric else "affine"
        bits = f", {self.integers.bits - 1}-bit" if self.reduce_range else ""
        return f"{self.dtype} {where} {kind}{bits}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "symmetric": self.symmetric,
            "channel_axis": self.channel_axis,
            "narrow_range": self.narrow_range,
            "reduce_range": self.reduce_range,
        }
