"""The estimate of `sensitivity`: a layer's own error ``e``, and how the output answers to it.

With ``v`` random, ``v^T J e`` is the directional derivative of ``v^T y``, one backward pass for all
layers, and the mean of its square is ``|J e|^2``: the noise that the layer alone brings to the
output, to first order (Hutchinson 1990; compare Dong et al. 2020, HAWQ-V2, arXiv:1911.03852).

Tested in tests/measuring/layers/test_sensitivity.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.measuring.layers.variants import Variant, values_of


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
        with torch.enable_grad():
            results = self.run(*tensors)
            values = results[: len(self.names)]
            rest = results[len(self.names) + len(self.needs) :]
            outputs = [t for t in rest if isinstance(t, Tensor) and t.requires_grad]
            probed = torch.stack([(t * _direction(t, chance)).sum() for t in outputs]).sum()
            gradients = torch.autograd.grad(probed, values, allow_unused=True)
        signal = sum(float(t.detach().double().square().sum()) for t in outputs)
        known = dict(zip([*self.names, *self.needs], results, strict=False))
        noise = dict.fromkeys(self.places, 0.0)
        gradient_of = dict(zip(self.names, gradients, strict=True))
        for layer, places in self.places.items():
            variant = self.rounded[layer]
            rounded = variant.run(*(known[name] for name in variant.needs))
            noise[layer] += sum(
                _answer(gradient_of[name], value - known[name])
                for name, value in zip(places, rounded, strict=True)
            )
        exact = tuple(t.detach() if isinstance(t, Tensor) else t for t in rest)
        return signal, noise, exact


def _direction(output: Tensor, chance: torch.Generator) -> Tensor:
    return torch.randn(output.shape, generator=chance, device=output.device, dtype=output.dtype)


def _answer(gradient: Tensor | None, error: Tensor) -> float:
    """The sum over the samples of the squared directional derivative."""
    if gradient is None:
        return 0.0
    samples = len(gradient)
    products = torch.linalg.vecdot(gradient.reshape(samples, -1), error.reshape(samples, -1))
    return float(products.double().square().sum())
