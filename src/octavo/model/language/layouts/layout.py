"""`Layout`: what is to be known of a form in which others keep linear layers.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.model.language.layouts.linear_integers import LinearIntegers

Sizes = tuple[int, int]  # [out, in]
Settings = Mapping[str, Any]  # a quantization_config


@dataclass(frozen=True)
class Layout:
    """A form of quantized linear layers in safetensors files.

    Attributes:
        name: as ``quant_method`` of a ``quantization_config`` has it.
        marks: the name of a tensor that each quantized layer has, and no other.
        names: of all tensors that one may have.
        read: sizes and tensors of a layer, and the ``quantization_config`` -> its integers; raises
            `ValueError` for what it has no reading for.
        write: integers -> tensors; raises `ValueError` for what it has no form for.
        settings: the ``quantization_config`` for layers by their paths, and paths of linear layers
            that are float.
    """

    name: str
    marks: str
    names: tuple[str, ...]
    read: Callable[[Sizes, Mapping[str, Tensor], Settings], LinearIntegers]
    write: Callable[[LinearIntegers], dict[str, Tensor]]
    settings: Callable[[Mapping[str, LinearIntegers], Sequence[str]], dict[str, Any]]


def one_of(layers: Mapping[str, LinearIntegers], what: str) -> Any:
    """Bits or group size that all layers have.

    Raises:
        ValueError: they differ.
    """
    found = {getattr(one, what): path for path, one in layers.items()}
    if len(found) > 1:
        (a, first), (b, other), *_ = found.items()
        raise ValueError(f"{first!r} has a {what} of {a}, {other!r} of {b}: it knows one for all")
    return next(iter(found))
