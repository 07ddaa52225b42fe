"""Do the runtimes agree? Each against the oracle, layer by layer and end to end.

A difference at one layer changes what all later layers read, so that comparing their results would
blame the wrong ones. Here every quantized layer is given what the oracle gave it: the graph is cut
where integers begin, the oracle's values go in at each cut, and what the runtime makes of them
comes out at the next. So one run shows every layer's own error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.arguments import BATCHES, FUNCTION, NAMES, called_rightly, of, optional
from octavo.display import Result, Table
from octavo.errors import InputError, MissingExtra, OctavoError
from octavo.graph.batches import size_of, split_batch
from octavo.graph.calls import flatten_call
from octavo.graph.cuts import Cuts
from octavo.graph.graph import Graph
from octavo.graph.program import run_of
from octavo.measuring.metrics import Likeness
from octavo.measuring.regions import calls_of, regions_in
from octavo.model.kinds import require_quantized
from octavo.model.model import QuantizedModel
from octavo.progress import waiting
from octavo.runtimes import ORACLE, RUNTIMES, is_for, lower
from octavo.runtimes.agreement import NEAR_DB, agreement
from octavo.runtimes.examples import random_inputs
from octavo.runtimes.lowered import Agreement
from octavo.runtimes.lowering import lower_as_meant
from octavo.runtimes.options import Options

RANDOM_BATCHES = 4


@dataclass(frozen=True)
class Threshold:
    """How far a layer of a runtime may be from the oracle's, given what the oracle gave it.

    Kernels that compute what the oracle says differ by the order of float sums and by how they
    round a half.

    Attributes:
        steps: a layer's integers may differ by so many steps ...
        share: ... but for this share of them, where float results lie between two integers.
        sqnr_db: of a layer's float results.
    """

    steps: int = 1
    share: float = 1e-4
    sqnr_db: float = 40.0


@dataclass(frozen=True)
class LayerParity:
    """One cut: the runtime's values against the oracle's, both made from the oracle's inputs.

    Attributes:
        layer: the node whose result this is.
        steps: the largest difference in steps of its scale; ``None`` for float results.
        share: of values that differ by more than one step.
        unequal: share of integers that differ at all. Sums of floats whose quotient lies between
            two steps make a hundred-thousandth; a thousandth is another arithmetic.
        sqnr_db: of the values.
    """

    layer: str
    steps: int | None
    share: float
    unequal: float
    sqnr_db: float

    def within(self, threshold: Threshold) -> bool:
        """Whether this is as near as it has to be."""
        if self.steps is None:
            return self.sqnr_db >= threshold.sqnr_db
        return self.steps <= threshold.steps or self.share <= threshold.share


@dataclass(frozen=True)
class RuntimeParity:
    """One runtime against the oracle.

    Attributes:
        runtime: its name.
        agreement: percent of samples with the same class; ``None`` where the outputs are not
            scores.
        whole: the outputs end to end, where small differences add up, and how far they may be off:
            as far as the oracle is from itself with some of its integers a step off; ``None`` where
            the runtime could not run.
        layers: every cut, in the order of the graph.
        first: the first layer that is too far off; ``""`` where none is.
        error: why it could not run; ``""`` where it could.
        passed: all layers within the threshold, and the whole within its bound.
    """

    runtime: str
    agreement: float | None
    whole: Agreement | None
    layers: tuple[LayerParity, ...]
    first: str
    error: str
    passed: bool

    @property
    def sqnr_db(self) -> float:
        """Of the outputs end to end; minus infinity where the runtime could not run."""
        return -math.inf if self.whole is None else self.whole.sqnr_db


@dataclass(frozen=True)
class Parity(Result):
    """What `verify` found: a runtime each. Prints as a table.

    Attributes:
        target: of the model.
        samples: how many were compared end to end.
        runtimes: a `octavo.measuring.parity.RuntimeParity` for each: agreement in percent, signal
            over noise in dB, and each layer's largest difference in steps of its integers.

    Example:
        >>> found = octavo.verify(q, runtimes=["torch"])
        >>> found.runtimes[0].runtime, found.passed
        ('torch', True)
    """

    target: str
    samples: int
    runtimes: tuple[RuntimeParity, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """Whether all runtimes agree with the oracle."""
        return all(runtime.passed for runtime in self.runtimes)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready data; an infinite SQNR is ``None``."""
        return {**super().to_dict(), "passed": self.passed}

    def table(self) -> Table:
        title = f"Runtimes against the oracle, {self.samples} samples, target {self.target}"
        cells = tuple(_cells(self.target, runtime) for runtime in self.runtimes)
        return Table(_COLUMNS, cells, title)


_COLUMNS = ("runtime", "agreement", "SQNR dB", "needed", "layers", "largest step", "verdict")


def _cells(target: str, parity: RuntimeParity) -> tuple[str, ...]:
    steps = [layer.steps for layer in parity.layers if layer.steps is not None]
    return (
        parity.runtime,
        "-" if parity.agreement is None else f"{parity.agreement:.2f} %",
        "-" if parity.whole is None else f"{parity.whole.sqnr_db:.1f}",
        "-" if parity.whole is None else _in_db(parity.whole.bound_db),
        str(len(parity.layers)),
        str(max(steps)) if steps else "-",
        _verdict(parity) + _advice(target, parity),
    )


def _in_db(bound: float | None) -> str:
    return f"{NEAR_DB:.1f}" if bound is None else f"{bound:.1f}"


def _advice(target: str, parity: RuntimeParity) -> str:
    """What to do where a runtime for models of other targets was named, and disagrees."""
    if parity.passed or parity.error or is_for(parity.runtime, target):
        return ""
    others = " or ".join(map(repr, RUNTIMES[parity.runtime].targets or ()))
    return f"; it is for models of target {others}: quantize with target={others}"


def _verdict(parity: RuntimeParity) -> str:
    if parity.error:
        return parity.error
    if parity.first:
        layer = next(layer for layer in parity.layers if layer.layer == parity.first)
        how = (
            f"{layer.sqnr_db:.1f} dB"
            if layer.steps is None
            else f"{layer.steps} steps, {100 * layer.share:.2g} % by more than one"
        )
        return f"disagrees first at {parity.first!r} ({how})"
    if not parity.passed:
        return f"every layer agrees, the whole does not: {parity.whole}"
    return "agrees"


_THRESHOLD = of(Threshold, way_out="give an octavo.measuring.parity.Threshold")


@called_rightly()
def verify(
    q: nn.Module,
    data: Iterable[Any] | None = None,
    *,
    inputs: Callable[[Any], Any] | None = None,
    runtimes: Sequence[str] | None = None,
    threshold: Threshold | None = None,
    progress: bool = True,
) -> Parity:
    """Compare runtimes with the oracle, layer by layer and end to end.

    Args:
        q: the model; of one with regions, these, with their paths in front of the layers' names.
        data: batches as `quantize` takes them for calibration; ``None`` takes random ones. The
            layers are compared on the first.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        runtimes: names; ``None`` is all that are installed and for the model's target.
        threshold: of each layer. The whole model's bound is derived, see
            `octavo.runtimes.perturbation`.
        progress: a clock for each runtime that takes long.

    Raises:
        InputError: there is no data, or it does not fit the model.

    Example:
        >>> octavo.verify(q, loader, runtimes=["torch", "onnxruntime"]).passed
        True
    """
    optional(BATCHES, data=data)
    optional(FUNCTION, inputs=inputs)
    optional(NAMES, runtimes=runtimes)
    optional(_THRESHOLD, threshold=threshold)
    limit = threshold or Threshold()
    regions = regions_in(q)
    if regions:
        calls = {} if data is None else calls_of(q, regions, data, inputs)
        return _together(
            {
                path: _of_graph(region, calls.get(path), dict, runtimes, limit, progress)
                for path, region in regions.items()
            }
        )
    return _of_graph(require_quantized(q, "verify"), data, inputs, runtimes, limit, progress)


def _of_graph(
    q: QuantizedModel,
    data: Iterable[Any] | None,
    inputs: Callable[[Any], Any] | None,
    runtimes: Sequence[str] | None,
    limit: Threshold,
    progress: bool,
) -> Parity:
    batches = _random_batches(q) if data is None else _tensors(q, data, inputs)
    if not batches:
        raise InputError("verify got no data; give at least one batch, or None for random ones")
    others = [name for name in RUNTIMES if name != ORACLE and is_for(name, q.target)]
    names = others if runtimes is None else runtimes
    graph = q.graph
    parities = []
    for name in names:
        with waiting(f"verifying {name}", progress), torch.no_grad():
            required = runtimes is not None
            parities.append(_compared(q, graph, name, batches, limit, required=required))
    samples = sum(map(size_of, batches))
    return Parity(q.target, samples, tuple(item for item in parities if item is not None))


def _together(found: Mapping[str, Parity]) -> Parity:
    """The regions of a model as one: of each runtime the worst, and all layers."""
    runtimes: dict[str, list[tuple[str, RuntimeParity]]] = {}
    for path, parity in found.items():
        for each in parity.runtimes:
            runtimes.setdefault(each.runtime, []).append((path, each))
    target = next(iter(found.values())).target
    samples = max(parity.samples for parity in found.values())
    return Parity(target, samples, tuple(_worst(name, each) for name, each in runtimes.items()))


def _worst(name: str, regions: Sequence[tuple[str, RuntimeParity]]) -> RuntimeParity:
    agreements = [each.agreement for _, each in regions if each.agreement is not None]
    wholes = [each.whole for _, each in regions if each.whole is not None]
    return RuntimeParity(
        name,
        min(agreements, default=None),
        min(wholes, key=lambda whole: whole.sqnr_db, default=None),
        tuple(
            replace(layer, layer=f"{path}.{layer.layer}")
            for path, each in regions
            for layer in each.layers
        ),
        next((f"{path}.{each.first}" for path, each in regions if each.first), ""),
        next((f"{path}: {each.error}" for path, each in regions if each.error), ""),
        all(each.passed for _, each in regions),
    )


def _random_batches(q: QuantizedModel) -> list[tuple[Tensor, ...]]:
    return [random_inputs(q.graph, seed=seed) for seed in range(RANDOM_BATCHES)]


def _tensors(
    q: QuantizedModel, data: Iterable[Any], inputs: Callable[[Any], Any] | None
) -> list[tuple[Tensor, ...]]:
    calls = (split_batch(batch, q.signature, inputs) for batch in data)
    return [tuple(flatten_call(q.graph, call.args, call.kwargs)) for call in calls]


def _compared(
    q: QuantizedModel,
    graph: Graph,
    name: str,
    batches: Sequence[Sequence[Tensor]],
    limit: Threshold,
    required: bool,
) -> RuntimeParity | None:
    """One runtime; ``None`` where its package is missing and nobody asked for it."""
    options = Options(precision=q.precision)
    try:
        lowered, meant = lower_as_meant(graph, name, q.device, options)
        whole = agreement(meant, lowered, batches)
        if whole is None:
            raise InputError("the oracle cannot run on this data")
        likeness, oracle = Likeness(), lowered.oracle or run_of(meant, q.device)
        for batch in batches:
            likeness.update(oracle(*batch), lowered.run(*batch))
        cuts = Cuts.of(meant, batches[0])
        cut = lower(cuts.graph, name, q.device, options)
        layers = _compared_layers(cuts.expecting(cut.oracle), cut.run)
    except (OctavoError, RuntimeError) as error:
        if not required and isinstance(error, MissingExtra):
            return None
        return RuntimeParity(name, None, None, (), "", str(error), passed=False)
    first = next((layer.layer for layer in layers if not layer.within(limit)), "")
    passed = not first and whole.agrees
    return RuntimeParity(name, likeness.agreement, whole, layers, first, "", passed)


def _compared_layers(cuts: Cuts, run: Callable[..., Any]) -> tuple[LayerParity, ...]:
    """What a runtime makes of the oracle's values."""
    results = run(*cuts.inputs, *cuts.given)
    return tuple(
        _layer(layer, want, have, scale)
        for layer, want, have, scale in zip(
            cuts.layers, cuts.outputs, results, cuts.scales, strict=True
        )
    )


def _layer(layer: str, want: Tensor, have: Tensor, scale: float | None) -> LayerParity:
    likeness = Likeness()
    likeness.update(want.to(torch.float32), have.to(torch.float32))
    if scale is None:
        return LayerParity(layer, None, 0.0, 0.0, likeness.sqnr_db)
    difference = (want.to(torch.int32) - have.to(torch.int32)).abs()
    share, unequal = (float((difference > steps).double().mean()) for steps in (1, 0))
    return LayerParity(layer, int(difference.max()), share, unequal, likeness.sqnr_db)
