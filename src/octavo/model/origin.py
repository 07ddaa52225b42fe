"""A quantized model's weights beside those of a float model: were they made of it?"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.graph.graph import Graph, Ref, refs_in
from octavo.graph.qdq import QuantizedWeight, weight_behind
from octavo.model.model import QuantizedModel
from octavo.quantization.qconfig import QSpec
from octavo.quantization.weights import BiasCorrection

# Rounding moves a weight by half a step at most. A float model that was stored in 16 bits since
# then differs by some hundredths of a step more, which changes no table.
_FARTHEST = 0.6


_OTHERS = (
    "the float model's {!r} differs from the quantized one's by more than rounding does: give the "
    "model that was quantized, with the weights that it had then"
)
_NEAREST = BiasCorrection.name  # of all methods the one that leaves weights to nearest
_CLOSE = 1e-2  # of its size: bfloat16 keeps as much


def rounded_weight(q: QuantizedModel, name: str) -> QuantizedWeight:
    """A weight that the plan quantizes, as the integers that the model has."""
    weight = weight_behind(q.graph, Ref(f"{name}.dequantized"))
    assert weight is not None
    return weight


def check_made_of(graph: Graph, q: QuantizedModel) -> None:
    """Refuse a float model whose weights do not become the quantized one's by rounding.

    Of a model that was trained with rounding, or that a weight method rounded otherwise than to
    nearest, they only have to be nearer to the float ones than zeros would be.

    Args:
        graph: the float model, captured.
        q: the quantized model; weights that the float model has under other names are left out.

    Raises:
        InputError: a weight is another one.
    """
    _check_floats(graph, q)
    specs = {
        name: planned.spec
        for name, planned in q.plan.quantized.items()
        if planned.kind == "weight" and planned.spec is not None and name in graph.constants
    }
    moved = "trained" in q.provenance or q.provenance.get("weights", _NEAREST) != _NEAREST
    for name, spec in specs.items():
        stored = rounded_weight(q, name)
        rounded = stored.floats()
        weight = graph.constants[name].detach().to(rounded)
        if weight.shape != rounded.shape:
            raise InputError(
                f"the float model's {name!r} is {list(weight.shape)}, the quantized one's "
                f"{list(rounded.shape)}: give the model that was quantized"
            )
        if moved:
            others = (weight - rounded).norm() > weight.norm()
        else:
            others = _distance(weight, stored, spec) > _FARTHEST
        if bool(others):
            raise InputError(_OTHERS.format(name))


def _check_floats(graph: Graph, q: QuantizedModel) -> None:
    """What stayed in float is what it was; biases of quantized layers take back what others do."""
    if "trained" in q.provenance:
        return
    planned = q.plan.tensors
    own = q.graph
    biases = {
        name
        for node in own.nodes
        if node.name in planned and planned[node.name].on_integers
        for name in refs_in((node.args[2:], dict(node.kwargs)))
    }
    for name, tensor in own.constants.items():
        before = graph.constants.get(name)
        if before is None or name in biases or not (tensor.is_floating_point() and tensor.numel()):
            continue
        alike = before.shape == tensor.shape and torch.allclose(
            before.detach().to(tensor), tensor, rtol=_CLOSE, atol=_CLOSE * float(tensor.abs().max())
        )
        if not alike:
            raise InputError(_OTHERS.format(name))


def _distance(weight: Tensor, stored: QuantizedWeight, spec: QSpec) -> Tensor:
    """The farthest that a value lies from its integer, in steps; clipping does not count."""
    scale, zero_point = stored.parameters()
    wanted = (weight / scale + zero_point).clamp(spec.scheme.qmin, spec.scheme.qmax)
    return (wanted - stored.integers).abs().amax()
