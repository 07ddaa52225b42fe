"""`Description`: what a quantized module is, but for its tensors; JSON out, JSON in.

A description may come from a file, so that nothing is made of it before it was checked against the
tensors that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.errors import ArtifactError, OctavoError
from octavo.graph.graph import TensorMeta
from octavo.numerics.scheme import Scheme

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_LARGEST = 2**31


@dataclass(frozen=True)
class Description:
    """What a module is.

    Attributes:
        kind: name of its class in `octavo.nn`.
        settings: the arguments of the float layer's class.
        weights: name of a weight -> how it is quantized.
        activation: how the input is rounded at each call; ``None`` where it stays float.
        dtype: of the float layer.
    """

    kind: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Scheme]
    activation: Scheme | None
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.kind,
            "settings": dict(self.settings),
            "weights": {name: scheme.to_dict() for name, scheme in self.weights.items()},
            "activation": None if self.activation is None else self.activation.to_dict(),
            "dtype": self.dtype,
        }

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], kind: str, settings: tuple[str, ...]
    ) -> Description:
        """What ``to_dict`` described.

        Raises:
            ArtifactError: it is not a description of a module of this kind.
        """
        try:
            if data["type"] != kind or data["dtype"] not in _DTYPES:
                raise ValueError(f"its type is {data['type']!r}, its dtype {data['dtype']!r}")
            own = data["settings"]
            if set(own) != set(settings) or not all(map(_is_plain, own.values())):
                raise ValueError(f"its settings are {own!r}, not {', '.join(settings)}")
            weights = {str(name): Scheme(**scheme) for name, scheme in data["weights"].items()}
            activation = data["activation"]
            scheme = None if activation is None else Scheme(**activation)
        except (KeyError, TypeError, ValueError, AttributeError, OctavoError) as error:
            raise ArtifactError(f"not the description of a {kind}: {error!r}") from None
        return cls(kind, dict(own), weights, scheme, data["dtype"])

    def check(
        self,
        metas_of: Callable[[Description], Mapping[str, TensorMeta]],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """Refuse tensors that are not those of a module of this description.

        Raises:
            ArtifactError: it names the first that does not fit.
        """
        # A layer of so many weights has a tensor for each: a number out of a file builds no tower.
        layers = self.settings.get("num_layers", 0)
        if not isinstance(layers, int) or layers > len(tensors):
            raise ArtifactError(
                f"a {self.kind} of {layers} layers has more than the "
                f"{len(tensors)} tensors that are there"
            )
        try:
            with torch.device("meta"):
                expected = metas_of(self)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise ArtifactError(f"there is no {self.kind} of {self.settings}: {error}") from None
        for name in dict.fromkeys((*expected, *tensors)):
            there = TensorMeta.of(tensors[name]) if name in tensors else "missing"
            here = expected.get(name, "not a tensor of it")
            if there != here:
                raise ArtifactError(f"{name!r} of a {self.kind} is {there}; expected {here}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 6 and all(map(_is_plain, value))
    if isinstance(value, bool | str | None):
        return True
    return isinstance(value, int | float) and -_LARGEST < value < _LARGEST
