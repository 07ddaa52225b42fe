"""What a weight method offers: a way from a layer's float weights to integers, scales and bias.

Without any a weight is rounded to the nearest integer. Methods work on what the methods before them
have made: first each rounds the weights, then it sets the biases, which so see the final integers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from torch import Tensor

from octavo.arguments import Kind
from octavo.quantization.weights.layers import Layer, Rounded


class Statistic(Protocol):
    """What is measured of a layer's input during calibration: a frozen dataclass.

    Equal ones of one tensor are measured once. A state is a value whose size does not depend on
    how much was seen; it is ``None`` before the first batch.
    """

    def update(self, state: Any, x: Tensor) -> Any:
        """The state after one more batch, a float tensor as the layer gets it."""
        ...

    def merge(self, one: Any, other: Any) -> Any:
        """The state of what both have seen: of two halves that of one pass."""
        ...


class WeightMethod:
    """A frozen dataclass derives from this, and says at least ``name``, and `round` or `bias`.

    Attributes:
        name: how summaries and files call it.

    Example:
        >>> class NoBias(WeightMethod):
        ...     name = "no bias"
        ...     def bias(self, layer, now, seen):
        ...         return None if now.bias is None else now.bias * 0
        >>> net = torch.nn.Linear(4, 2)
        >>> q = octavo.quantize(
        ...     net, torch.rand(8, 4), mode="weight_only", weights=[NoBias()], target="x86"
        ... )
        >>> q(torch.zeros(1, 4))
        tensor([[0., 0.]])
    """

    name: ClassVar[str]

    def fits(self, layer: Layer) -> bool:
        """Whether it does anything to a layer; others are left as they are."""
        return True

    def statistic(self, layer: Layer) -> Statistic | None:
        """What it wants to know of the input of a layer that it fits; ``None``: nothing.

        It is not asked where a layer has no `Layer.input`.
        """
        return None

    def doubt(self, layer: Layer, seen: Any) -> str | None:
        """Why it rounds a layer worse than it could, as a sentence; ``None`` where all is well.

        It is asked where models are quantized in modules, and said once for all layers.

        Args:
            layer, seen: as for `round`.
        """
        return None

    def round(self, layer: Layer, now: Rounded, seen: Any) -> Rounded:
        """Integers and qparams of the weight.

        Of a weight that several layers share, it is called for one after the other.

        Args:
            layer: the layer in float.
            now: what the methods before have made.
            seen: the state of its statistic; merged, of all layers of the operator that share the
                weight.

        Returns:
            Integers of the shape and in the range of ``now``, scales of that shape and scheme.
        """
        return now

    def bias(self, layer: Layer, now: Rounded, seen: Any) -> Tensor | None:
        """The bias, float ``[out]``, or ``None`` for none, of a layer that `Layer.takes_bias`.

        Args:
            layer, now: as for `round`; the integers are those that it gave.
            seen: the state of its statistic, of this layer alone.
        """
        return now.bias


def _is_methods(value: Any) -> bool:
    listed = isinstance(value, list | tuple)
    return listed and all(isinstance(m, WeightMethod) and hasattr(m, "name") for m in value)


_PUBLIC = {
    name.lower(): name
    for name in (
        *("AWQ", "GPTQ", "HQQ", "AdaRound", "Reconstruction", "Clip"),
        *("SmoothQuant", "Rotation", "BiasCorrection"),
    )
}


def _to_methods(value: Any) -> str:
    """The methods that are meant: a name, a class or a single one stands for its list."""
    parts = value if isinstance(value, list | tuple) else [value]
    names = (str(getattr(part, "name", part)).lower() for part in parts)
    meant = [f"octavo.{_PUBLIC[name]}()" for name in names if name in _PUBLIC]
    example = ", ".join(meant) or "octavo.BiasCorrection()"
    return f"give a list of weight methods that have a name, [{example}]"


METHODS = Kind(_is_methods, _to_methods)
