"""The estimate of `sensitivity`: a layer's own error ``e``, and how the output answers to it.

With ``v`` random, ``v^T J e`` is the directional derivative of ``v^T y``, one backward pass for all
layers, and the mean of its square is ``|J e|^2``: the noise that the layer alone brings to the
output, to first order (Hutchinson 1990; compare Dong et al. 2020, HAWQ-V2, arXiv:1911.03852).

Tested in tests/measuring/layers/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.measuring.layers.variants import Variant, values_of

# Of each layer: the values that it makes, and by how much each is off if it alone is quantized.
Errors = dict[str, list[tuple[Tensor, Tensor]]]


class Estimate:
    """Each layer's own error, and what of it reaches the output, to first order."""

    def __init__(self, graph: Graph, pieces: Mapping[str, Graph], seed: int) -> None:
        self.places = {layer: values_of(graph, layer) for layer in pieces}
        self.names = [name for places in self.places.values() for name in places]
        constants = {
            name: t.detach().requires_grad_() if t.is_floating_point() else t
            for name, t in graph.constants.items()
        }
        self.rounded = {
            layer: Variant(
                tuple(piece.input_names()),
                run_of(piece, graph.device),
            )
            for layer, piece in pieces.items()
        }
        self.needs = list(dict.fromkeys(n for v in self.rounded.values() for n in v.needs))
        outputs = [*self.names, *self.needs, *graph.output_names()]
        self.run = run_of(replace(graph, constants=constants), graph.device, outputs)
        self.device, self.seed = graph.device, seed

    def of(
        self, tensors: list[Tensor], index: int
    ) -> tuple[float, dict[str, float], tuple[Any, ...]]:
        """The output's signal and each layer's noise, summed over one batch; and the outputs.

        Args:
            tensors: what the graph takes.
            index: of the batch: each has directions of its own.
        """
        chance = torch.Generator(device=self.device).manual_seed(self.seed + index)
        errors, results = self.errors(tensors)
        outputs = [t for t in results if isinstance(t, Tensor) and t.requires_grad]
        signal, noise = answers(outputs, [errors], chance)
        exact = tuple(t.detach() if isinstance(t, Tensor) else t for t in results)
        return signal, noise, exact

    def errors(self, tensors: Sequence[Tensor]) -> tuple[Errors, tuple[Any, ...]]:
        """Each layer's values and its own errors; and the outputs, with what gradients need."""
        with torch.enable_grad():
            results = self.run(*tensors)
        known = dict(zip([*self.names, *self.needs], results, strict=False))
        errors: Errors = {}
        with torch.no_grad():
            for layer, places in self.places.items():
                variant = self.rounded[layer]
                rounded = variant.run(*(known[name] for name in variant.needs))
                errors[layer] = [
                    (known[name], value - known[name])
                    for name, value in zip(places, rounded, strict=True)
                ]
        return errors, results[len(self.names) + len(self.needs) :]


def answers(
    outputs: Sequence[Tensor], calls: Sequence[Errors], chance: torch.Generator
) -> tuple[float, dict[str, float]]:
    """The signal of outputs, and the noise that each layer's own errors bring to them.

    Args:
        outputs: with what gradients need.
        calls: the errors of each call of layers; those of several calls of one layer add up.
        chance: draws the direction.
    """
    with torch.enable_grad():
        probed = torch.stack([(t * _direction(t, chance)).sum() for t in outputs]).sum()
    places = [place for errors in calls for layer in errors.values() for place in layer]
    gradients = iter(torch.autograd.grad(probed, [v for v, _ in places], allow_unused=True))
    noise: dict[str, float] = {}
    for errors in calls:
        for layer, pairs in errors.items():
            own = sum(_answer(next(gradients), error) for _, error in pairs)
            noise[layer] = noise.get(layer, 0.0) + own
    return sum(float(t.detach().double().square().sum()) for t in outputs), noise


def _direction(output: Tensor, chance: torch.Generator) -> Tensor:
    return torch.randn(output.shape, generator=chance, device=output.device, dtype=output.dtype)


def _answer(gradient: Tensor | None, error: Tensor) -> float:
    """The sum over the samples of the squared directional derivative."""
    if gradient is None:
        return 0.0
    samples = len(gradient)
    products = torch.linalg.vecdot(gradient.reshape(samples, -1), error.reshape(samples, -1))
    return float(products.double().square().sum())
