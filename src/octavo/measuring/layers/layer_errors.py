"""`layer_errors`: what rounding does to each layer, by itself and on the way to it.

One pass over the data. For each batch the float model gives the exact values; the quantized model
gives the *accumulated* error, which has all layers before in it; and the quantized model cut into
layers (`octavo.graph.cuts`), each fed with the float model's values, gives each layer's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import BATCHES, TEXT, expect, optional
from octavo.display import Result, Table
from octavo.errors import optional_import
from octavo.graph.batches import Batch
from octavo.graph.calls import first_samples, flatten_call
from octavo.graph.cuts import Cuts
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.measuring.layers.beside import Beside
from octavo.measuring.layers.channels_last import channels_last
from octavo.measuring.layers.error_sums import ErrorSums, LayerSums, RangeSums
from octavo.measuring.regions import calls_of, named, regions_in
from octavo.model.kinds import require_float, require_quantized
from octavo.model.model import QuantizedModel
from octavo.model.origin import rounded_weight
from octavo.quantization.plan import Plan
from octavo.quantization.qconfig import QSpec
from octavo.quantization.targets import ROLES, SHARED
from octavo.runtimes import lower


@dataclass(frozen=True)
class LayerError:
    """What rounding does to one tensor.

    Attributes:
        tensor: its name; an activation is named after the layer that makes it.
        kind: ``"weight"``, ``"activation"`` or ``"input"``.
        op: the operator that makes it, or that uses the weight.
        values: its integers in words, or ``"float"``.
        sqnr_db: signal over noise of the layer's own rounding: its input, its weights and its
            result, given what the float model has there. Of a weight: of its rounding.
        accumulated_sqnr_db: with the error of all layers before; ``None`` for weights.
        mse: mean squared error of the layer's own rounding.
        cosine: of the angle between exact and rounded values, own rounding.
        low, high: the exact values' range.
        clipped: share of the values beyond what the integers hold.
        unused: share of the integers beyond the values seen.
    """

    tensor: str
    kind: str
    op: str
    values: str
    sqnr_db: float
    accumulated_sqnr_db: float | None
    mse: float
    cosine: float
    low: float
    high: float
    clipped: float
    unused: float


@dataclass(frozen=True)
class LayerErrors(Result):
    """What `layer_errors` found, in the order of the graph. Prints as a table."""

    rows: tuple[LayerError, ...]
    samples: int

    def worst(self, count: int = 5) -> tuple[LayerError, ...]:
        """The layers that lose most by themselves, worst first; none that only moves values."""
        activations = [r for r in self.rows if r.kind == "activation" and ROLES.get(r.op) != SHARED]
        return tuple(sorted(activations, key=lambda row: row.sqnr_db)[:count])

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each tensor.

        Raises:
            MissingExtra: pandas is not installed.
        """
        with optional_import("pandas", "analysis", "make a DataFrame"):
            import pandas
        return pandas.DataFrame([asdict(row) for row in self.rows]).set_index("tensor")

    def table(self) -> Table:
        title = f"Rounding errors of {len(self.rows)} tensors, {self.samples} samples"
        return Table(_COLUMNS, tuple(map(_cells, self.rows)), title)


_COLUMNS = (
    "tensor",
    "op",
    "values",
    "SQNR dB",
    "accumulated",
    "cosine",
    "range",
    "clipped",
    "unused",
)


def _cells(row: LayerError) -> tuple[str, ...]:
    accumulated = row.accumulated_sqnr_db
    return (
        row.tensor,
        row.op,
        row.values,
        f"{row.sqnr_db:.1f}",
        "" if accumulated is None else f"{accumulated:.1f}",
        f"{row.cosine:.5f}",
        f"{row.low:.3g} .. {row.high:.3g}",
        f"{100 * row.clipped:.2f} %",
        f"{100 * row.unused:.0f} %",
    )


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
        q: the quantized model; of one with regions, these, with their paths in front of the names.
        data: any iterable of batches, as `quantize` takes for calibration.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        runtime: ``"torch"`` or ``"reference"``; ``None`` is ``q``'s own of these, else the oracle.
        progress: a bar on a terminal.

    Raises:
        InputError: no data, or ``q`` was not made of this model.

    Example:
        >>> print(octavo.layer_errors(model, q, loader))  # doctest: +SKIP
    """
    optional(TEXT, runtime=runtime)
    require_float(model, "layer_errors")
    if regions_in(q):
        return _of_regions(model, q, data, inputs, progress, runtime)
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
        own, seen = sums.own, sums.seen
        return LayerError(
            tensor=name,
            kind=planned.kind,
            op=planned.op,
            values="float" if sums.integers is None else planned.values,
            sqnr_db=own.sqnr_db,
            accumulated_sqnr_db=sums.accumulated.sqnr_db,
            mse=own.mse,
            cosine=own.cosine,
            low=seen.low,
            high=seen.high,
            clipped=seen.clipped_share,
            unused=_unused(sums.integers, planned.spec),
        )


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


def weight_errors(float_graph: Graph, q: QuantizedModel) -> dict[str, LayerError]:
    """The errors of the weights alone; no data is needed."""
    names = [name for name, t in q.plan.quantized.items() if t.kind == "weight"]
    errors = {}
    for name in names:
        planned, exact = q.plan.tensors[name], float_graph.constants[name].float()
        assert planned.spec is not None
        stored, sums, seen = rounded_weight(q, name), ErrorSums(), RangeSums()
        rounded = stored.floats()
        sums.update(exact, rounded)
        seen.update(exact, None)
        # What lies beyond the integers is moved by more than rounding moves anything: half a step.
        step, zero_point = stored.parameters()
        clipped = ((exact - rounded).abs() > 0.51 * step).float().mean()
        low, high = torch.aminmax(stored.integers - zero_point)
        errors[name] = LayerError(
            tensor=name,
            kind="weight",
            op=planned.op,
            values=planned.values,
            sqnr_db=sums.sqnr_db,
            accumulated_sqnr_db=None,
            mse=sums.mse,
            cosine=sums.cosine,
            low=seen.low,
            high=seen.high,
            clipped=float(clipped),
            unused=_unused((int(low), int(high)), planned.spec),
        )
    return errors


def _unused(integers: tuple[int, int] | None, spec: QSpec | None) -> float:
    """The share of the integers that are beyond those in use."""
    if integers is None or spec is None:
        return 0.0
    levels = spec.scheme.qmax - spec.scheme.qmin
    return max(0.0, 1.0 - (integers[1] - integers[0]) / levels)
