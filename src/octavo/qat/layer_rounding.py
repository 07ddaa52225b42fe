"""A layer's weight and bias as they are deployed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.qat.fake_quantize import FakeQuantize
from octavo.qat.rounding import integer_bias
from octavo.quantization.weights import step_of_sums, with_room


@dataclass(frozen=True)
class LayerRounding:
    """Called with a layer's weight and bias, gives them rounded.

    Attributes:
        weight: what rounds the weight; ``None`` leaves it in float.
        input: what rounds the layer's input, where the bias becomes a whole number of steps: of
            input scale times weight scale, as they are at this moment.
    """

    weight: FakeQuantize | None
    input: FakeQuantize | None = None

    def __call__(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self.weight is None:
            return weight, bias
        if self.input is None or not (self.input.rounds and self.weight.rounds):
            return self.weight(weight), bias
        source = self.input.qparams()
        qparams = with_room(self.weight.qparams_of(weight), source, bias)
        step = step_of_sums(qparams, source, len(bias))
        return self.weight.rounded(weight, qparams), integer_bias(bias, step)

    def before(self, operator: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's operator, behind the rounding of its second and third argument."""

        def call(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Any:
            return operator(x, *self(weight, bias), *rest)

        return call
