"""How one tensor is quantized: type, symmetry, granularity, range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from octavo.arguments import INTEGER, optional
from octavo.errors import PlanError
from octavo.numerics.dtypes import QDType, qdtype

GROUP_SIZES = (256, 128, 64, 32, 16, 8)  # usual ones


@dataclass(frozen=True)
class Scheme:
    """A quantization scheme.

    Attributes:
        dtype: name of the integer type, see `octavo.numerics.dtypes`.
        symmetric: the range is centred on zero and the zero point is fixed (0 for a signed type,
            the middle for an unsigned one); otherwise affine.
        channel_axis: ``None`` for one scale per tensor, else the axis with one scale per channel.
            Of a weight, any axis stands for the output channels, wherever the layer has them.
        group_size: of a weight: one scale for so many neighbours along the input channels, within
            each output channel.
        per_token: of an activation whose range is found at run time: one scale for each row, that
            is for each index of all axes but the last.
        narrow_range: leave out the lowest integer, so that a signed range is symmetric
            (-127..127 for int8).
        reduce_range: one bit less, for kernels that saturate in int16 (CPUs without VNNI).
        power_of_two: scales are powers of two, for hardware that shifts instead of multiplying.

    Raises:
        PlanError: the dtype is unknown, or settings exclude each other.
        InputError: an axis or a group size is no whole number.

    Example:
        >>> Scheme("int8", symmetric=True, channel_axis=0, narrow_range=True).qmin
        -127
        >>> str(Scheme("uint8", reduce_range=True))
        'uint8 per-tensor affine, 7-bit'
    """

    dtype: str = "uint8"
    symmetric: bool = False
    channel_axis: int | None = None
    group_size: int | None = None
    per_token: bool = False
    narrow_range: bool = False
    reduce_range: bool = False
    power_of_two: bool = False

    def __post_init__(self) -> None:
        optional(INTEGER, channel_axis=self.channel_axis, group_size=self.group_size)
        qdtype(self.dtype)
        if self.narrow_range and not self.integers.signed:
            raise PlanError(f"narrow_range needs a signed dtype, not {self.dtype}")
        if self.qmin >= self.qmax:
            raise PlanError(
                f"{self.dtype} with narrow_range and reduce_range holds one integer only: leave "
                "out one of them"
            )
        if self.group_size is not None and self.group_size < 1:
            raise PlanError(f"group_size is {self.group_size}; it must be 1 or more, e.g. 32")
        granularities = (self.channel_axis is not None, self.group_size is not None, self.per_token)
        if sum(granularities) > 1:
            raise PlanError(
                f"channel_axis={self.channel_axis}, group_size={self.group_size} and "
                f"per_token={self.per_token} exclude each other; give one of them"
            )

    @property
    def integers(self) -> QDType:
        """The integer type: its bits, its range, whether it is signed."""
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
        kind = "symmetric" if self.symmetric else "affine"
        bits = f", {self.integers.bits - 1}-bit" if self.reduce_range else ""
        power = ", power-of-two scale" if self.power_of_two else ""
        return f"{self.dtype} {self.granularity} {kind}{bits}{power}"

    @property
    def granularity(self) -> str:
        """What has a scale of its own, in words."""
        if self.group_size is not None:
            return f"per-group-of-{self.group_size}"
        if self.per_token:
            return "per-token"
        return "per-tensor" if self.channel_axis is None else "per-channel"

    def misfit(self, name: str, shape: Sequence[int]) -> str | None:
        """Why a weight cannot have groups of this size, as a clause; ``None`` where it can.

        Args:
            name: what to call it.
            shape: of the weight, input channels last.
        """
        size = self.group_size
        if size is None or (len(shape) == 2 and shape[1] % size == 0):
            return None
        told = f"group_size {size} does not divide its {name} of shape {list(shape)}"
        if len(shape) != 2:
            return f"{told}: only a matrix has groups"
        fitting = (n for n in GROUP_SIZES if n < size and shape[1] % n == 0)
        return told + next((f"; group_size={n} does" for n in fitting), "")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
