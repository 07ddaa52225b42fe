"""`sensitivity` of a model of which parts become integers, while the whole runs in Python.

What `octavo.measuring.layers.study` does on a graph is done here by putting other modules into a
part's place and running the whole model, once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.graph.batches import Batch
from octavo.graph.copying import copied
from octavo.measuring.layers.estimate import answers
from octavo.measuring.layers.spots import Spot
from octavo.measuring.layers.study import Scores, Sums
from octavo.measuring.metrics import Metric
from octavo.model.tree import put


@dataclass(frozen=True)
class PartsStudy:
    """What is studied.

    Attributes:
        model: the float model.
        spots: where its parts stand.
        metric, exact, seed: as for `octavo.measuring.layers.study.Study`.
    """

    model: nn.Module
    spots: Sequence[Spot]
    metric: str | Metric | None
    exact: bool
    seed: int

    @cached_property
    def layers(self) -> list[str]:
        return [layer for spot in self.spots for layer in spot.layers]

    def nothing(self) -> Sums:
        """The sums of no batch."""
        chosen = self.layers if self.exact else []
        return Sums(Scores.none(self.metric, chosen), Scores.none(self.metric, chosen))

    def opened(self) -> Callable[[tuple[int, Batch]], Sums]:
        """What measures a batch, given its place in the data."""
        return _Bench(self).measure


class _Whole(nn.Module):
    """Holds a model, so that the whole of it can be a part as well."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def at(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)


class _Bench:
    """A float model and a quantized one, into which other modules are put."""

    def __init__(self, study: PartsStudy) -> None:
        self.study = study
        self.floats = _Whole(copied(study.model).eval())
        self.quantized = _Whole(copied(study.model).eval())
        for spot in study.spots:
            module = spot.quantized(oracle=study.exact)
            put(self.quantized, self.quantized.at(spot.path), module)
        self.probes = {spot.path: spot.probe(study.seed) for spot in study.spots}
        chosen = [(s, layer) for s in study.spots for layer in s.layers if study.exact]
        self.alone = {layer: (s.path, s.alone(layer)) for s, layer in chosen}
        self.without = {layer: (s.path, s.without(layer)) for s, layer in chosen}

    def measure(self, item: tuple[int, Batch]) -> Sums:
        """The sums of one batch, the ``index``-th of the data."""
        index, call = item
        sums = self.study.nothing()
        sums.samples = call.size
        with torch.no_grad():
            exact = call.run(self.floats)
            sums.alone.base.update(exact, exact, call.labels)
            sums.without.base.update(exact, call.run(self.quantized), call.labels)
            for scores, whole, variants in (
                (sums.alone, self.floats, self.alone),
                (sums.without, self.quantized, self.without),
            ):
                for layer, (path, module) in variants.items():
                    with _standing(whole, {path: module}):
                        scores.layers[layer].update(exact, call.run(whole), call.labels)
        sums.signal, sums.noise = self._estimated(index, call)
        return sums

    def _estimated(self, index: int, call: Batch) -> tuple[float, dict[str, float]]:
        """How the whole's outputs answer; where no gradient comes to them, those of the parts."""
        probes = self.probes.values()
        with _standing(self.floats, self.probes), torch.enable_grad():
            outputs = _asked(call.run(self.floats)) or [t for p in probes for t in p.outputs]
        if not outputs:  # this batch calls no part, so that none of them adds to its outputs
            return 0.0, dict.fromkeys(self.study.layers, 0.0)
        calls = [errors for probe in probes for errors in probe.errors]
        chance = torch.Generator(device=outputs[0].device).manual_seed(self.study.seed + index)
        signal, noise = answers(outputs, calls, chance)
        for probe in probes:
            probe.clear()
        return signal, dict.fromkeys(self.study.layers, 0.0) | noise


def _asked(result: Any) -> list[Tensor]:
    """The outputs that hold values, and of which gradients can be asked."""
    leaves = pytree.tree_leaves(result)
    return [t for t in leaves if isinstance(t, Tensor) and t.requires_grad and t.numel()]


@contextmanager
def _standing(whole: _Whole, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, these modules stand at their paths."""
    before = {path: whole.at(path) for path in modules}
    for path, module in modules.items():
        put(whole, before[path], module)
    try:
        yield
    finally:
        for path, module in modules.items():
            put(whole, module, before[path])
