"""``torch.ao.ns._numeric_suite``: a float model and its int8 one, layer by layer.

Quantized tensors are given as the floats that they stand for. `octavo.layer_errors` and
`octavo.sensitivity` say more: what a layer does to the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.compat.quantization.conversion import Converted
from octavo.compat.quantization.layers import WeightReader
from octavo.compat.quantization.missing import missing, refuse
from octavo.errors import InputError
from octavo.graph.calls import flatten_call
from octavo.graph.capture.capture import capture
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.numerics import octavo_operators

__all__ = ["compare_model_outputs", "compare_model_stub", "compare_weights"]

_SUMS = "octavo.layer_errors(model, q, data) sums over batches"


def compare_weights(
    float_dict: Mapping[str, Any], quantized_dict: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """The weights of both models, by the quantized one's names.

    Args:
        float_dict: the float model's ``state_dict()``; of a model whose batch norms were fused, if
            the other's were.
        quantized_dict: the converted model's ``state_dict()``.

    Returns:
        Name -> ``{"float": ..., "quantized": ...}``, both float32.

    Example:
        >>> found = compare_weights(net.state_dict(), int8.state_dict())  # doctest: +SKIP
        >>> found["fc.weight"]["quantized"].dequantize()  # doctest: +SKIP
    """
    weights = {}
    for key, integers in quantized_dict.items():
        scale, zero_point = (
            quantized_dict.get(f"{key}_{what}") for what in ("scale", "zero_point")
        )
        original = _matching(key, float_dict)
        if scale is None or zero_point is None or original is None:
            continue
        if integers.shape == original.shape:
            scale, zero_point = (_of_rank(values, integers) for values in (scale, zero_point))
            read = octavo_operators.dequantize(integers, scale, zero_point)
            weights[key] = {"float": original, "quantized": read}
    return weights


def _of_rank(values: Tensor, integers: Tensor) -> Tensor:
    """Layers that run alone have one value for each index of the first axis, or one for all."""
    return values.reshape(values.shape + (1,) * (integers.dim() - values.dim()))


def compare_model_outputs(
    float_model: nn.Module,
    q_model: nn.Module,
    *data: Any,
    logger_cls: Any = None,
    allow_list: Iterable[Any] | None = None,
) -> dict[str, dict[str, list[Tensor]]]:
    """What each quantized layer returns in both models.

    Args:
        float_model: the float model, its modules fused as in the other.
        q_model: the converted model.
        data: the arguments of one call.
        logger_cls: not shared.
        allow_list: classes of float modules to look at; all without.

    Returns:
        ``"<path>.stats"`` -> ``{"float": [...], "quantized": [...]}``, float32.

    Raises:
        InputError: ``q_model`` was not converted.
    """
    refuse(_SUMS, logger_cls=logger_cls)
    quantized = _model(q_model).graph
    theirs = capture(float_model, data)
    paths = [path for path, _ in _layers(q_model) if _allowed(float_model, path, allow_list)]
    ours = _values(quantized, data, {path: _output_of(quantized, path) for path in paths})
    floats = _values(theirs, data, {path: _output_of(theirs, path) for path in paths})
    return {
        f"{path}.stats": {"float": [floats[path]], "quantized": [ours[path]]}
        for path in paths
        if path in ours and path in floats
    }


def compare_model_stub(
    float_model: nn.Module,
    q_model: nn.Module,
    module_swap_list: Iterable[Any],
    *data: Any,
    logger_cls: Any = None,
) -> dict[str, dict[str, list[Tensor]]]:
    """What float modules make of the very inputs that the quantized ones had.

    Args:
        float_model, q_model, data, logger_cls: as for `compare_model_outputs`, whose result and
            errors are these as well.
        module_swap_list: classes of float modules, each with one tensor for input and output.
    """
    refuse(_SUMS, logger_cls=logger_cls)
    graph = _model(q_model).graph
    kinds = list(module_swap_list)
    paths = [
        path
        for path, module in float_model.named_modules()
        if path and type(module) in kinds and _output_of(graph, path)
    ]
    inputs = _values(graph, data, {path: _input_of(graph, path) for path in paths})
    outputs = _values(graph, data, {path: _output_of(graph, path) for path in paths})
    found = {}
    for path in paths:
        with torch.no_grad():
            shadow = float_model.get_submodule(path)(inputs[path])
        found[f"{path}.stats"] = {"float": [shadow], "quantized": [outputs[path]]}
    return found


def _matching(key: str, float_dict: Mapping[str, Any]) -> Any:
    """The float weight; that of a fused module lies one deeper, as its first part's."""
    path, _, leaf = key.rpartition(".")
    return float_dict.get(key, float_dict.get(f"{path}.0.{leaf}"))


def _model(q_model: nn.Module) -> Any:
    if not isinstance(q_model, Converted):
        raise InputError(
            f"the quantized model is a {type(q_model).__name__}, which convert did not make; for "
            "one from octavo.quantize use octavo.layer_errors(model, q, data)"
        )
    return q_model.octavo_model


def _layers(q_model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, m) for path, m in q_model.named_modules() if isinstance(m, WeightReader))


def _allowed(model: nn.Module, path: str, kinds: Iterable[Any] | None) -> bool:
    return kinds is None or type(model.get_submodule(path)) in set(kinds)


def _inside(graph: Graph, path: str) -> list[Any]:
    within = (f"{path}.",)
    return [n for n in graph.nodes if n.module == path or n.module.startswith(within)]


def _output_of(graph: Graph, path: str) -> str | None:
    """The last value that a module makes, dequantized where it is quantized."""
    nodes = _inside(graph, path)
    if not nodes:
        return None
    last = nodes[-1].name
    names = {node.name for node in graph.nodes}
    return f"{last}.dequantized" if f"{last}.dequantized" in names else last


def _input_of(graph: Graph, path: str) -> str | None:
    """The first value that a module reads and did not make."""
    nodes = _inside(graph, path)
    names = (name for node in nodes for name in node.refs())
    constants = set(graph.constants) | {f"{name}.dequantized" for name in graph.constants}
    return next((name for name in names if name not in constants), None)


def _values(
    graph: Graph, data: tuple[Any, ...], wanted: Mapping[str, str | None]
) -> dict[str, Any]:
    """Values of a graph, under the names that they are wanted by."""
    names = {key: name for key, name in wanted.items() if name is not None}
    run = run_of(graph, graph.device, list(names.values()))
    with torch.no_grad():
        values = run(*flatten_call(graph, data, {}))
    return dict(zip(names, values, strict=True))


def __getattr__(name: str) -> Any:
    raise missing(__name__, name)
