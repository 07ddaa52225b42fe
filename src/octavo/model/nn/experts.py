"""`Experts`: the experts of a mixture, each two linear layers, with weights in integers.

Models of transformers stack the weights of all experts in one tensor, and read slices of it without
calling a layer. Here each expert has layers of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import ArtifactError
from octavo.model.nn.description import Description
from octavo.model.nn.float_layers import linear_of, taking_place
from octavo.model.nn.linear import Linear
from octavo.model.nn.quantized_module import QuantizedModule
from octavo.quantization.qconfig import QConfig

if TYPE_CHECKING:
    from typing import Self  # which Python 3.10 has not

# Where transformers has the function that all its classes of experts share: what it asks of them
# is what they compute.
_MADE_BY = "transformers.integrations.moe"

# Between the two layers.
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x).square(),
}


class Experts(QuantizedModule, floats=nn.Module, operator="linear"):
    """The experts of a mixture, in the place of transformers' stacked ones.

    It takes what they take: rows ``[n, hidden]``, the experts that each row goes through, int64
    ``[n, k]``, and how much each counts, float ``[n, k]``; it returns ``[n, hidden]``. Its state
    dict has the layers of each expert, ``gate_up_proj.0.weight`` and so on.

    Args:
        description, tensors: as for `QuantizedModule`.
        parts: the layers of all experts, by the names of the stacked weights.
    """

    settings: ClassVar[tuple[str, ...]] = (
        *("num_experts", "has_gate", "has_bias", "is_transposed"),
        "function",
    )

    num_experts: int
    has_gate: bool  # whether the first layer's results are gates and values, side by side
    has_bias: bool
    is_transposed: bool  # whether the float weights were [experts, in, out]
    function: str  # one of FUNCTIONS

    def __init__(
        self,
        description: Description,
        tensors: Mapping[str, Tensor],
        parts: Mapping[str, list[Linear]],
    ) -> None:
        super().__init__(description, tensors)
        for name, layers in parts.items():
            self.add_module(name, nn.ModuleList(layers))

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        made_by = getattr(type(layer).forward, "__globals__", {}).get("__name__")
        gate = getattr(type(layer), "_apply_gate", None)
        return (
            made_by == _MADE_BY
            and getattr(gate, "__module__", "") == _MADE_BY
            and not getattr(layer, "has_post_expert_norm", False)
            and function_of(layer) is not None
        )

    @classmethod
    def obstacle(cls, layer: nn.Module, qconfig: QConfig) -> str | None:
        linears = (linear for part in linears_of(layer).values() for linear in part)
        obstacles = (Linear.obstacle(linear, qconfig) for linear in linears)
        return next((obstacle for obstacle in obstacles if obstacle is not None), None)

    @classmethod
    def from_float(cls, layer: nn.Module, qconfig: QConfig, target: str = "x86") -> Self:
        obstacle = cls.obstacle(layer, qconfig)
        if obstacle is not None:
            return super().from_float(layer, qconfig, target)  # which says so
        parts = {
            name: [Linear.from_float(linear, qconfig, target) for linear in linears]
            for name, linears in linears_of(layer).items()
        }
        first = next(iter(parts.values()))[0]
        settings = cls.settings_of(layer)
        dtype = first.description.dtype
        description = Description(cls.__name__, settings, {}, first.activation, dtype)
        return taking_place(cls(description, {}, parts), layer)

    @classmethod
    def settings_of(cls, layer: nn.Module) -> dict[str, Any]:
        own = {name: getattr(layer, name) for name in cls.settings if name != "function"}
        return own | {"function": function_of(layer)}

    @classmethod
    def parameter_shapes(cls, description: Description) -> dict[str, tuple[int, ...]]:
        """Of none: the layers have their own."""
        return {}

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Self:
        known = Description.from_dict(description, cls.__name__, cls.settings)
        names, inner = _names(known.settings["has_gate"] is True), description.get("parts")
        count = known.settings["num_experts"]
        if (
            not isinstance(inner, dict)
            or set(inner) != set(names)
            or not all(isinstance(of, list) and len(of) == count for of in inner.values())
            or known.settings["function"] not in FUNCTIONS
        ):
            raise ArtifactError(f"{cls.__name__} have {count} layers of {' and '.join(names)} each")
        by_layer: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            at, _, name = key.rpartition(".")
            by_layer.setdefault(at, {})[name] = tensor
        parts = {
            name: [
                Linear.from_description(one, by_layer.pop(f"{name}.{index}", {}))
                for index, one in enumerate(inner[name])
            ]
            for name in names
        }
        if by_layer:
            raise ArtifactError(f"{next(iter(by_layer))!r} is no layer of {count} experts")
        module = cls(known, {}, parts)
        module._check_sizes()
        return module

    def _check_sizes(self) -> None:
        """Refuse layers that do not fit together.

        Raises:
            ArtifactError: they do not.
        """
        hidden, inside = self._up[0].in_features, self._down[0].in_features
        wide = 2 * inside if self.has_gate else inside
        for up, down in zip(self._up, self._down, strict=True):
            sizes = (up.in_features, up.out_features, down.in_features, down.out_features)
            if sizes != (hidden, wide, inside, hidden):
                raise ArtifactError(f"layers of an expert that do not fit together: {sizes}")

    @property
    def _up(self) -> list[Linear]:
        return list(getattr(self, _names(self.has_gate)[0]))

    @property
    def _down(self) -> list[Linear]:
        return list(getattr(self, _names(self.has_gate)[1]))

    @property
    def device(self) -> torch.device:
        return self._down[0].device

    def describe(self) -> dict[str, Any]:
        names = _names(self.has_gate)
        parts = {name: [layer.describe() for layer in getattr(self, name)] for name in names}
        return super().describe() | {"parts": parts}

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}.{index}.{key}": tensor
            for name in _names(self.has_gate)
            for index, layer in enumerate(getattr(self, name))
            for key, tensor in layer.tensors().items()
        }

    def float_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name in _names(self.has_gate):
            sizes = getattr(self, name)[0].float_shapes()
            weight = sizes["weight"][::-1] if self.is_transposed else sizes["weight"]
            shapes[name] = (self.num_experts, *weight)
            if self.has_bias:
                shapes[f"{name}_bias"] = (self.num_experts, *sizes["bias"])
        return shapes

    def dequantized(self) -> dict[str, Tensor]:
        floats: dict[str, Tensor] = {}
        for name in _names(self.has_gate):
            layers = [layer.dequantized() for layer in getattr(self, name)]
            weight = torch.stack([layer["weight"] for layer in layers])
            floats[name] = weight.transpose(1, 2) if self.is_transposed else weight
            if self.has_bias:
                floats[f"{name}_bias"] = torch.stack([layer["bias"] for layer in layers])
        return floats

    def compute(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        ups, downs = self._up, self._down
        for expert in top_k_index.unique().tolist():
            if expert < self.num_experts:  # others are of another process
                rows, place = torch.where(top_k_index == expert)
                x = downs[expert](
                    between(ups[expert](hidden_states[rows]), self.function, self.has_gate)
                )
                weighted = x * top_k_weights[rows, place, None]
                result.index_add_(0, rows, weighted.to(result.dtype))
        return result

    def float_repr(self) -> str:
        hidden, inside = self._up[0].in_features, self._down[0].in_features
        return f"num_experts={self.num_experts}, hidden={hidden}, intermediate={inside}"

    def extra_repr(self) -> str:
        return f"{self.float_repr()}, {self.function}"


def _names(has_gate: bool) -> tuple[str, str]:
    """Of the two layers, as transformers names their weights."""
    return "gate_up_proj" if has_gate else "up_proj", "down_proj"


def between(x: Tensor, function: str, has_gate: bool) -> Tensor:
    """What the second layer of an expert makes of the results of the first.

    Args:
        x: the results, float ``[n, inside]``, twice as wide with gates.
        function: one of `FUNCTIONS`.
        has_gate: whether they are gates and values, side by side.
    """
    if not has_gate:
        return FUNCTIONS[function](x)
    gate, values = x.chunk(2, -1)
    return FUNCTIONS[function](gate) * values


def inputs_of(
    layer: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """What each layer of each expert reads in a call of stacked experts in float.

    Args:
        layer: the experts.
        hidden_states, top_k_index, top_k_weights: of the call, see `Experts`.

    Yields:
        The name of a stack and the number of an expert, and the rows that this layer reads.
    """
    first, second = linears_of(layer).items()
    function, has_gate = function_of(layer), bool(layer.has_gate)
    assert function is not None
    for expert, up in enumerate(first[1]):
        rows, _ = torch.where(top_k_index == expert)
        x = hidden_states[rows]
        yield (first[0], expert), x
        yield (second[0], expert), between(up(x), function, has_gate)


def linears_of(layer: nn.Module) -> dict[str, list[nn.Linear]]:
    """The layers of each expert, by the name of their stacked weights, whose memory they share.

    Args:
        layer: stacked experts in float.
    """
    return {name: list(_unstacked(layer, name)) for name in _names(bool(layer.has_gate))}


def _unstacked(layer: nn.Module, name: str) -> Iterator[nn.Linear]:
    weights: Tensor = getattr(layer, name)
    biases = getattr(layer, f"{name}_bias") if layer.has_bias else [None] * len(weights)
    for weight, bias in zip(weights, biases, strict=True):
        yield linear_of(weight.t() if layer.is_transposed else weight, bias)


def function_of(layer: nn.Module) -> str | None:
    """Which of `FUNCTIONS` a layer has, by what it makes of some numbers, large ones too: others
    are clipped there.
    """
    function, large = getattr(layer, "act_fn", None), torch.logspace(1, 8, 8)
    x = torch.cat([-large, torch.linspace(-8, 8, 65), large])
    if not callable(function):
        return None
    with torch.no_grad():
        values = function(x)
        return next((name for name, one in FUNCTIONS.items() if torch.equal(one(x), values)), None)
