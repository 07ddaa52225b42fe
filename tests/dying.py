"""A method that dies amid its work, as a process that is killed does."""

from __future__ import annotations

from typing import Any

import octavo
from octavo.quantization.weights import Layer, Rounded


class Killed(Exception):
    pass


class Dies(octavo.Clip):
    """Stands for a process that is killed at the first layer of the second block."""

    def round(self, layer: Layer, now: Rounded, seen: Any) -> Rounded:
        if layer.name.startswith("model.layers.1."):
            raise Killed
        return super().round(layer, now, seen)

    def __repr__(self) -> str:
        return repr(octavo.Clip())
