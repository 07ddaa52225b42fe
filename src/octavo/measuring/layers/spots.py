"""The spots of a model where quantized parts stand: a region, or a single layer.

A spot gives the modules that may stand there: with all of its layers quantized, with one alone,
with all but one, and one that says how far each layer is off by itself.

Tested in tests/measuring/layers/test_parts_study.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.flow.finding import Region
from octavo.graph.calls import build_output, flatten_call
from octavo.graph.channels_last import channels_last
from octavo.graph.graph import Graph
from octavo.measuring.layers.estimate import Errors, Estimate
from octavo.measuring.layers.study import Study
from octavo.measuring.layers.variants import all_but, only
from octavo.model.model import QuantizedModel


class Probe(nn.Module):
    """Stands in a part's place, computes what it computes in float, and notes its layers' errors.

    Attributes:
        errors: of each call, by the names that the layers have in the model.
        outputs: what the calls returned, with what gradients need.
    """

    errors: list[Errors]
    outputs: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def clear(self) -> None:
        """Forget what was noted."""
        self.errors, self.outputs = [], []

    def note(self, errors: Errors, result: Any) -> None:
        """Note a call."""
        self.errors.append(errors)
        leaves = pytree.tree_leaves(result)
        self.outputs += [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]


class Spot(Protocol):
    """Where a part stands.

    Attributes:
        path: of the part in the model.
        layers: names of its layers in the model.
    """

    path: str
    layers: list[str]

    def quantized(self, oracle: bool) -> nn.Module:
        """With all of its layers quantized."""
        ...

    def alone(self, layer: str) -> nn.Module:
        """With this layer quantized, and the others in float."""
        ...

    def without(self, layer: str) -> nn.Module:
        """With all but this layer quantized."""
        ...

    def probe(self, seed: int) -> Probe:
        """What notes the layers' errors."""
        ...


class RegionSpot:
    """A region, whose layers are nodes of its graph."""

    def __init__(self, path: str, region: Region, study: Study) -> None:
        self.path, self.region, self.study = path, region, study
        self._names = {f"{path}.{layer}": layer for layer in study.layers}
        self.layers = list(self._names)

    def quantized(self, oracle: bool) -> nn.Module:
        return self._model(self.study.quantized(self.study.plan), oracle)

    def alone(self, layer: str) -> nn.Module:
        study = self.study
        return self._model(study.quantized(only(study.graph, study.plan, self._names[layer])))

    def without(self, layer: str) -> nn.Module:
        study = self.study
        return self._model(study.quantized(all_but(study.graph, study.plan, self._names[layer])))

    def probe(self, seed: int) -> Probe:
        return _RegionProbe(self, seed)

    def _model(self, graph: Graph, oracle: bool = True) -> QuantizedModel:
        region = self.region
        return QuantizedModel(
            graph,
            region.plan,
            region.signature,
            {},
            "reference" if oracle else None,
            samples=region.samples,
            check=not oracle,
            place=region.place,
        )


class _RegionProbe(Probe):
    def __init__(self, spot: RegionSpot, seed: int) -> None:
        super().__init__()
        study = spot.study
        self.__dict__.update(
            estimate=Estimate(study.graph, {n: study.by_itself(n) for n in study.layers}, seed),
            graph=study.graph,
            place=spot.region.place,
            prefix=f"{spot.path}.",
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = list(map(channels_last, flatten_call(self.graph, args, kwargs)))
        errors, results = self.estimate.errors(tensors)
        result = build_output(self.graph, results)
        self.note({self.prefix + layer: pairs for layer, pairs in errors.items()}, result)
        return result

    def __getattr__(self, name: str) -> Any:
        attributes: Mapping[str, Any] = self.__dict__["place"].attributes
        return attributes[name] if name in attributes else super().__getattr__(name)


class LayerSpot:
    """A single layer, and the module of `octavo.nn` in its place."""

    def __init__(self, path: str, layer: nn.Module, quantized: nn.Module) -> None:
        self.path, self._float, self._quantized = path, layer, quantized
        self.layers = [path]

    def quantized(self, oracle: bool) -> nn.Module:
        return self._quantized

    def alone(self, layer: str) -> nn.Module:
        return self._quantized

    def without(self, layer: str) -> nn.Module:
        return self._float

    def probe(self, seed: int) -> Probe:
        return _LayerProbe(self.path, self._float, self._quantized)


class _LayerProbe(Probe):
    def __init__(self, path: str, layer: nn.Module, quantized: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(path=path, layer=layer, quantized=quantized)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            exact = _answering(self.layer(*args, **kwargs))
        with torch.no_grad():
            rounded = self.quantized(*args, **kwargs)
        pairs = zip(_floats(exact), _floats(rounded), strict=True)
        self.note({self.path: [(want, have - want.detach()) for want, have in pairs]}, exact)
        return exact

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


def _floats(tree: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(tree)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _answering(tree: Any) -> Any:
    """The same values, of which gradients can be asked even where the layer's weights have none."""
    return pytree.tree_map_only(
        Tensor,
        # No leaf, which the model could not change in place.
        lambda t: t if t.requires_grad or not t.is_floating_point() else t.requires_grad_() * 1,
        tree,
    )
