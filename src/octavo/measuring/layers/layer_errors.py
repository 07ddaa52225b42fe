"""`layer_errors`: what rounding does to each layer, by itself and on the way to it.

One pass over the data. For each batch the float model gives the exact values; the quantized model
gives the *accumulated* error, which has all layers before in it; and the quantized model cut into
layers (`octavo.graph.cuts`), each fed with the float model's values, gives each layer's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import BATCHES, TEXT, called_rightly, expect, optional
from octavo.graph.batches import Batch
from octavo.graph.calls import first_samples, flatten_call
from octavo.graph.channels_last import channels_last
from octavo.graph.cuts import Cuts
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.measuring.layers.beside import Beside
from octavo.measuring.layers.error_sums import LayerSums
from octavo.measuring.layers.error_table import LayerError, LayerErrors
from octavo.measuring.layers.module_errors import module_errors
from octavo.measuring.layers.weight_errors import unused_share, weight_errors
from octavo.measuring.modules import modules_in
from octavo.measuring.regions import calls_of, named, regions_in
from octavo.model.kinds import require_float, require_quantized
from octavo.model.model import QuantizedModel
from octavo.quantization.plan import Plan
from octavo.runtimes import lower


@called_rightly()
def layer_errors(
    model: nn.Module,
    q: nn.Module,
    data: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
    runtime: str | None = None,
    progress: bool = True,
) -> LayerErrors:
    """What rounding does to each weight and each activation.

    Args:
        model: the float model that ``q`` was made of. It is left as it was.
        q: the quantized model; of one with regions, these, with their paths in front of the names;
            of one with modules of `octavo.nn`, what each of them returns, and their weights.
        data: any iterable of batches, as `quantize` takes for calibration.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        runtime: of graphs, ``"torch"`` or ``"reference"``; ``None`` is ``q``'s own of these, else
            the oracle.
        progress: a bar in terminals and notebooks, lines in logs.

    Raises:
        InputError: no data, or ``q`` was not made of this model.

    Example:
        >>> errors = octavo.layer_errors(model, q, loader)
        >>> errors.worst(1)[0].sqnr_db > 25
        True
    """
    optional(TEXT, runtime=runtime)
    require_float(model, "layer_errors")
    if regions_in(q):
        return _of_regions(model, q, data, inputs, progress, runtime)
    if modules := modules_in(q):
        return module_errors(model, q, modules, data, inputs, progress)
    own = require_quantized(q, "layer_errors")
    return _Layers.over(model, own, data, inputs, progress, runtime=runtime).result()


def _of_regions(
    model: nn.Module,
    q: nn.Module,
    data: Iterable[Any],
    inputs: Callable[[Any], Any] | None,
    progress: bool,
    runtime: str | None,
) -> LayerErrors:
    """Those of each region, on what it is called with in the float model."""
    expect(BATCHES, data=data)
    regions = regions_in(q)
    calls = calls_of(model, regions, data, inputs)
    rows, samples = [], 0
    for path, region in regions.items():
        module = model.get_submodule(path)
        found = _Layers.over(module, region, calls[path], dict, progress, runtime=runtime).result()
        rows += [replace(row, tensor=named(path, row.tensor)) for row in found.rows]
        samples = max(samples, found.samples)
    return LayerErrors(tuple(rows), samples)


class _Layers(Beside):
    """The float model, the quantized one and its pieces side by side.

    Attributes:
        cuts: the quantized graph in pieces.
    """

    function = "layer_errors"
    words = "comparing layers"

    def __init__(
        self, model: nn.Module, q: QuantizedModel, first: Batch, runtime: str | None = None
    ) -> None:
        super().__init__(model, q, first)
        if runtime is None:
            runtime = q.runtime if q.runtime in ("torch", "reference") else "reference"
        tensors = flatten_call(q.graph, first.args, first.kwargs)
        self.cuts = Cuts.of(q.graph, _one_sample(q.graph, tensors), _returning_floats(q.plan))
        known = set(self.graph.metas)
        layers = dict.fromkeys([*self.cuts.layers, *self.cuts.sources])
        # What a model of pixels has in place of the float image.
        self.names = {
            name: name if name in known else name.removesuffix(".normalized").rstrip("_")
            for name in layers
        }
        missing = [name for name, own in self.names.items() if own not in known]
        self.check(f"layer {missing[0]!r}" if missing else None)
        self.run_float = run_of(self.graph, q.device, list(self.names.values()))
        self.run_whole = lower(self.cuts.whole, runtime, q.device).run
        self.run_pieces = lower(self.cuts.graph, runtime, q.device).run
        self.samples = 0
        self.sums = {name: LayerSums() for name in self.cuts.layers}

    @torch.no_grad()
    def update(self, call: Batch) -> None:
        tensors = flatten_call(self.q.graph, call.args, call.kwargs)
        read = map(channels_last, self.floats(call))
        exact = dict(zip(self.names, self.run_float(*read), strict=True))
        whole = self.run_whole(*tensors)
        pieces = self.run_pieces(*tensors, *(exact[name] for name in self.cuts.sources))
        self.samples += call.size
        cuts = self.cuts
        for layer, scale, zero_point, all_in, alone in zip(
            cuts.layers, cuts.scales, cuts.zero_points, whole, pieces, strict=True
        ):
            want = exact[layer]
            if not isinstance(want, Tensor) or not want.is_floating_point() or not want.numel():
                continue
            ends = self._ends(layer, scale, zero_point)
            self.sums[layer].update(want, alone, all_in, scale, zero_point, ends)

    def _ends(
        self, layer: str, scale: float | None, zero_point: int | None
    ) -> tuple[float, float] | None:
        spec = self.q.plan.tensors[layer].spec if layer in self.q.plan.tensors else None
        if scale is None or zero_point is None or spec is None:
            return None
        scheme = spec.scheme
        return (
            (scheme.qmin - zero_point - 0.5) * scale,
            (scheme.qmax - zero_point + 0.5) * scale,
        )

    def result(self) -> LayerErrors:
        """All that was found."""
        weights = weight_errors(self.graph, self.q)
        rows = []
        plans = self.q.plan.tensors
        for name in plans:
            if plans[name].kind == "weight":
                rows.append(weights[name])
            elif name in self.sums and self.sums[name].own.count:
                rows.append(self._row(name))
        return LayerErrors(tuple(rows), self.samples)

    def _row(self, name: str) -> LayerError:
        planned, sums = self.q.plan.tensors[name], self.sums[name]
        if sums.integers is None or planned.spec is None:
            return sums.row(name, planned.kind, planned.op, "float")
        unused = unused_share(sums.integers, planned.spec.scheme)
        return sums.row(name, planned.kind, planned.op, planned.values, unused)


def _returning_floats(plan: Plan) -> list[str]:
    """The layers that read integers, or have them for weights, and whose result is not rounded."""
    return [
        name
        for name, planned in plan.tensors.items()
        if planned.on_integers
        and planned.kind == "activation"
        and planned.spec is None
        and planned.fused_into is None
    ]


def _one_sample(graph: Graph, tensors: list[Tensor]) -> list[Tensor]:
    """The first sample of a batch, where the graph leaves the batch size free: it is run slowly."""
    pairs = list(zip(graph.inputs, tensors, strict=True))
    if any(entry.batch_axis is None for entry, _ in pairs):
        return tensors
    return [first_samples(entry, tensor, 1) for entry, tensor in pairs]
