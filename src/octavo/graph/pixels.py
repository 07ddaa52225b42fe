"""`Pixels`: the preprocessing of images that becomes part of a model which takes uint8."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError


@dataclass(frozen=True)
class Pixels:
    """What makes a model's floats of uint8 pixels: ``(x * scale - mean) / std``.

    Attributes:
        scale: of all pixels; 1 / 255 gives 0 to 1, as torchvision's ``ToTensor`` does.
        mean, std: one number for each channel, or one for all; in units of ``x * scale``.

    Raises:
        InputError: a number is not finite, or scale or std is not above zero.

    Example:
        >>> Pixels(1 / 255, mean=(0.5,), std=(0.5,)).normalized(torch.tensor([[[[0, 255]]]]))
        tensor([[[[-1.,  1.]]]])
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name, values in (("scale", (self.scale,)), ("mean", self.mean), ("std", self.std)):
            if not values or not all(math.isfinite(value) for value in values):
                raise InputError(
                    f"input_{name} is {values}; give finite numbers: one for each channel, or one"
                )
            if name != "mean" and min(values) <= 0:
                raise InputError(f"input_{name} is {values}; give numbers above zero")

    @classmethod
    def given(cls, scale: Any = None, mean: Any = None, std: Any = None) -> Pixels | None:
        """From what a user gives, numbers or sequences of them; ``None`` if nothing is given.

        Raises:
            InputError: something is not a number.
        """
        if scale is None and mean is None and std is None:
            return None
        scales = _numbers("scale", 1 / 255 if scale is None else scale)
        if len(scales) != 1:
            raise InputError(f"input_scale is {scales}; give one number for all channels")
        means = _numbers("mean", 0.0 if mean is None else mean)
        return cls(scales[0], means, _numbers("std", 1.0 if std is None else std))

    def constants(self, channels: int) -> tuple[Tensor, Tensor]:
        """The same as ``x * factor + offset``: two float32 ``[channels, 1, 1]``.

        Raises:
            InputError: mean or std is for another number of channels.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(
                    f"input_{name} has {len(values)} numbers {values}, the image has {channels} "
                    "channels; give one for each, or one for all"
                )
        mean, std = (
            torch.tensor(values, dtype=torch.float64).expand(channels).reshape(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (self.scale / std).float(), (-mean / std).float()

    def normalized(self, x: Tensor) -> Tensor:
        """Pixels ``[N, channels, height, width]`` as the float model takes them, in float32.

        Raises:
            InputError: mean or std is for another number of channels.
        """
        factor, offset = self.constants(x.shape[1])
        return x.to(torch.float32) * factor.to(x.device) + offset.to(x.device)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, which `from_dict` takes."""
        return {"scale": self.scale, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Any) -> Pixels | None:
        """What `to_dict` gave; ``None`` of ``None``.

        Raises:
            InputError: it is something else.
        """
        if data is None:
            return None
        if not isinstance(data, dict) or data.keys() != {"scale", "mean", "std"}:
            raise InputError(f"{data!r} is not a record of scale, mean and std of pixels")
        return cls.given(**data)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """One number, or several in a sequence, array or tensor."""
    try:
        one = isinstance(value, int | float) or getattr(value, "ndim", 1) == 0
        many: Iterable[Any] = (value,) if one else value
        return tuple(float(number) for number in many)
    except (TypeError, ValueError):
        raise InputError(
            f"input_{name} is {value!r}; give a number, or a sequence of one for each channel"
        ) from None
