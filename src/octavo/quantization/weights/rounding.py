"""Weight methods at work on a graph: what they measure, and what becomes of weights and biases.

Tested in tests/quantization/weights/test_method.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from torch import Tensor

from octavo.arguments import described
from octavo.errors import CalibrationError, PlanError
from octavo.graph.graph import Graph
from octavo.numerics.affine import QParams, quantized
from octavo.quantization.plan import Plan
from octavo.quantization.weights.integer_biases import IntegerBiases
from octavo.quantization.weights.layers import Layer, Rounded, quantized_layers, with_biases
from octavo.quantization.weights.method import Statistic, WeightMethod
from octavo.quantization.weights.rescaling import Rescaling
from octavo.quantization.weights.rotation import Rotation

# A tensor, and what is measured of it.
Measured = tuple[str, Statistic]


@dataclass(frozen=True)
class RoundedGraph:
    """What the QDQ graph is made of.

    Attributes:
        graph: in float, with the biases that are deployed.
        qparams: of every quantized tensor, by name.
        integers: of every quantized weight, by name.
    """

    graph: Graph
    qparams: Mapping[str, QParams]
    integers: Mapping[str, Tensor]


def round_weights(
    graph: Graph,
    plan: Plan,
    qparams: Mapping[str, QParams],
    weights: Sequence[WeightMethod] = (),
    statistics: Mapping[Measured, Any] | None = None,
) -> RoundedGraph:
    """Weights to the nearest integers, then one method after the other, then integer biases.

    Args:
        graph: the canonical float graph; it is left as it is.
        plan: made for that graph.
        qparams: for every tensor that the plan quantizes.
        weights: methods, in the order in which they apply.
        statistics: from a calibration with these methods.

    Raises:
        CalibrationError: a method needs a statistic that is missing.
        PlanError: a method gives integers or scales that the scheme does not have, or scales
            inputs.
    """
    _refuse_scaling(weights)
    layers = quantized_layers(graph, plan)
    known, biases = dict(qparams), {layer.name: layer.bias for layer in layers}
    integers = {
        name: quantized(graph.constants[name].detach(), qparams[name])
        for name, tensor in plan.quantized.items()
        if tensor.kind == "weight"
    }

    def now(layer: Layer) -> Rounded:
        weight = layer.weight_name
        read = known.get(layer.input or "") if layer.runs == "int8" else None
        return Rounded(integers[weight], known[weight], biases[layer.name], read)

    for method in (*weights, IntegerBiases()):
        fitting = [layer for layer in layers if method.fits(layer)]
        for (weight, _), sharing in _sharing(fitting).items():
            seen = _seen(method, sharing, statistics or {})
            for layer in sharing:
                rounded = _checked(method, layer, now(layer), method.round(layer, now(layer), seen))
                integers[weight], known[weight] = rounded.integers, rounded.qparams
        for layer in fitting:
            if layer.takes_bias:
                seen = _seen(method, [layer], statistics or {})
                bias = method.bias(layer, now(layer), seen)
                biases[layer.name] = _checked_bias(method, layer, bias)
    changed = {n.name: biases[n.name] for n in layers if biases[n.name] is not n.bias}
    return RoundedGraph(with_biases(graph, changed), known, integers)


def measured(graph: Graph, plan: Plan, weights: Sequence[WeightMethod]) -> list[Measured]:
    """What the methods want to know of the inputs of layers, each once.

    Raises:
        PlanError: one scales inputs, for which a graph has no place.
    """
    _refuse_scaling(weights)
    layers = quantized_layers(graph, plan)
    wanted = (_measured(m, layer) for m in weights for layer in layers if m.fits(layer))
    return list(dict.fromkeys(key for key in wanted if key is not None))


def applied(graph: Graph, plan: Plan, weights: Sequence[WeightMethod]) -> list[str]:
    """The names of the methods that do something to a layer of the graph, in order."""
    layers = quantized_layers(graph, plan)
    return [method.name for method in weights if any(map(method.fits, layers))]


def _refuse_scaling(weights: Sequence[WeightMethod]) -> None:
    for method in weights:
        if isinstance(method, Rescaling | Rotation):
            does = "turns" if isinstance(method, Rotation) else "scales"
            raise PlanError(
                f"the weight method {method.name!r} {does} the inputs of modules, and this is a "
                'graph: give scope="modules" (and mode="dynamic" or "weight_only"), or leave it '
                "out of weights="
            )


def _sharing(layers: Iterable[Layer]) -> dict[tuple[str, str], list[Layer]]:
    """By weight, and by operator, which may read it with its axes the other way round."""
    sharing: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        sharing.setdefault((layer.weight_name, layer.node.short_op), []).append(layer)
    return sharing


def _measured(method: WeightMethod, layer: Layer) -> Measured | None:
    statistic = None if layer.input is None else method.statistic(layer)
    return None if layer.input is None or statistic is None else (layer.input, statistic)


def _seen(method: WeightMethod, layers: Iterable[Layer], statistics: Mapping[Measured, Any]) -> Any:
    """What was measured of the inputs of layers, together; ``None`` where nothing should be."""
    keys = [key for key in dict.fromkeys(_measured(method, n) for n in layers) if key is not None]
    for name, statistic in keys:
        if (name, statistic) not in statistics:
            raise CalibrationError(
                f"the weight method {method.name!r} needs {statistic} of the tensor {name!r}, "
                "which was not measured: give the same weights= to octavo.calibrate, and its "
                "statistics= here"
            )
    return reduce(keys[0][1].merge, (statistics[key] for key in keys)) if keys else None


def _checked(method: WeightMethod, layer: Layer, before: Rounded, after: Any) -> Rounded:
    """What a method gives, its integers in the type that is stored.

    Raises:
        PlanError: it is nothing that the scheme has.
    """
    who, scheme = f"the weight method {method.name!r} gave {layer.name!r}", before.qparams.scheme
    if not isinstance(after, Rounded):
        raise PlanError(f"{who} {described(after)}; round() has to return a Rounded")
    integers = after.integers
    shapes = [[tuple(r.integers.shape), tuple(r.qparams.scale.shape)] for r in (before, after)]
    in_range = not bool(((integers < scheme.qmin) | (integers > scheme.qmax)).any())
    if shapes[0] != shapes[1] or after.qparams.scheme != scheme or not in_range:
        raise PlanError(
            f"{who} integers and scales of {shapes[1]} in {after.qparams.scheme}, from "
            f"{integers.min().item()} to {integers.max().item()}; expected {shapes[0]} in "
            f"{scheme}, from {scheme.qmin} to {scheme.qmax}"
        )
    return replace(after, integers=integers.to(before.integers.dtype))


def _checked_bias(method: WeightMethod, layer: Layer, bias: Tensor | None) -> Tensor | None:
    if bias is not None and tuple(bias.shape) != (layer.outputs,):
        raise PlanError(
            f"the weight method {method.name!r} gave {layer.name!r} a bias of shape "
            f"{list(bias.shape)}; expected [{layer.outputs}]"
        )
    return bias
