"""Which operators run on integers: those that read integers, and whose result is rounded.

Tested in tests/runtimes/litert/test_export.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from octavo.errors import ExportError
from octavo.graph.graph import Graph, Node
from octavo.graph.operators import arguments
from octavo.graph.qdq import QUANTIZE
from octavo.runtimes.litert.flatbuffer import Quantization
from octavo.runtimes.litert.values import Form

_TYPES = {torch.int8: "int8", torch.int16: "int16"}


@dataclass(frozen=True)
class Rounding:
    """How the result of an operator is rounded.

    Attributes:
        name: of the integers in the graph.
        form: type, scale and zero point.
        low, high: the range of the integers.
        clip: the operator between that cuts the result to a range; ``None`` where there is none.
    """

    name: str
    form: Form
    low: int
    high: int
    clip: Node | None = None

    @property
    def activation(self) -> str | None:
        """The activation that gives this range; ``None`` where it takes operators of its own."""
        return next((name for name, ends in _ACTIVATIONS.items() if self._is(*ends)), None)

    @property
    def is_full(self) -> bool:
        """Whether the type itself has this range."""
        return (self.low, self.high) == _range(self.form.dtype)

    def within(self, lowest: float, highest: float) -> Rounding:
        """The same of values that are cut to a range before."""
        low, high = _within(self.form, lowest, highest)
        return replace(
            self,
            low=max(self.low, min(low, self.high)),
            high=min(self.high, max(high, self.low)),
        )

    def _is(self, lowest: float, highest: float) -> bool:
        return (self.low, self.high) == _within(self.form, lowest, highest)


# The schema's names, and the range that each cuts to.
_ACTIVATIONS = {
    "NONE": (-math.inf, math.inf),
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}
# Operators that cut to a range -> the arguments that bound it, or numbers.
CLIPS: dict[str, Callable[[Node], tuple[float, float]]] = {
    "relu": lambda node: (0.0, math.inf),
    "relu6": lambda node: (0.0, 6.0),
    "hardtanh": lambda node: (arguments(node)["min_val"], arguments(node)["max_val"]),
}


def rounding_of(graph: Graph, node: Node) -> Rounding | None:
    """How a node's result is rounded; ``None`` where it is used as floats."""
    user, clip = graph.only_user(node.name), None
    if user is not None and user.short_op in CLIPS:
        user, clip = graph.only_user(user.name), user
    if user is None or user.op != QUANTIZE:
        return None
    return _rounding(user, clip)


def form_of(quantize: Node) -> Form:
    """The integers that a node rounds to.

    Raises:
        ExportError: LiteRT has no such.
    """
    given = arguments(quantize)
    if given["dtype"] not in _TYPES:
        raise ExportError(
            f"{quantize.name!r} holds {given['dtype']}; LiteRT computes with int8 and int16"
        )
    one = Quantization((float(given["scale"]),), (int(given["zero_point"]),))
    return Form(_TYPES[given["dtype"]], one)


def rounding_at(quantize: Node) -> Rounding:
    """What a quantize node itself does."""
    return _rounding(quantize, None)


def _rounding(quantize: Node, clip: Node | None) -> Rounding:
    form, given = form_of(quantize), arguments(quantize)
    whole = Rounding(quantize.name, form, int(given["qmin"]), int(given["qmax"]), clip)
    return whole if clip is None else whole.within(*CLIPS[clip.short_op](clip))


def _within(form: Form, lowest: float, highest: float) -> tuple[int, int]:
    """The integers between two values."""
    return nearest(form, lowest), nearest(form, highest)


def nearest(form: Form, value: float) -> int:
    """The integer that a number is rounded to."""
    ends = _range(form.dtype)
    if math.isinf(value):
        return ends[value > 0]
    return max(ends[0], min(ends[1], round(value / form.scale) + form.zero_point))


def _range(dtype: str) -> tuple[int, int]:
    return (-128, 127) if dtype == "int8" else (-32768, 32767)
