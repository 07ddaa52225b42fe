"""`sensitivity`: which layers hurt when they are quantized.

Estimated for all layers in one pass: each layer's own error, and how the output answers to it
(`octavo.measuring.layers.estimate`). Measured exactly, one layer at a time: this layer alone
quantized, and all but this one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from octavo.arguments import BATCHES, FUNCTION, TEXT, called_rightly, expect, of, optional
from octavo.display import Result, Table
from octavo.errors import InputError, OctavoError
from octavo.flow.running import Source
from octavo.flow.settings import ONLY, SCOPE, Only, Settings, default_mode, scope_of
from octavo.graph.batches import Batch, Signature, peek, split_batch
from octavo.measuring.engines import Workers, opened, require
from octavo.measuring.layers.studies import Studied, Wanted, study_of, study_of_modules
from octavo.measuring.layers.study import Sums
from octavo.measuring.metrics import Metric
from octavo.measuring.next_tokens import Divergence, is_causal, judged, with_next_token_loss
from octavo.model.kinds import require_float
from octavo.numerics.sqnr import sqnr_db
from octavo.progress import track
from octavo.quantization.qconfig import QConfig, QConfigMapping, mapping_of
from octavo.quantization.weights import METHODS, WeightMethod, with_correction
from octavo.runtimes.cpu import host_target


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        layer: its name.
        estimate_db: SQNR of the output, as estimated, if this layer alone were quantized; of the
            regions' outputs where no gradient comes from the model's own.
        alone_db: the same, measured; ``None`` if it was not, or the outputs' shapes differ.
        alone: the metric with this layer alone quantized.
        without_db: SQNR of the output with all but this layer quantized, measured.
        without: the metric with all but this layer quantized.
    """

    layer: str
    estimate_db: float
    alone_db: float | None = None
    alone: float | None = None
    without_db: float | None = None
    without: float | None = None


@dataclass(frozen=True)
class Sensitivity(Result):
    """What `sensitivity` found: the layers, the most sensitive first. Prints as a table.

    Attributes:
        layers: see `LayerSensitivity`.
        metric: name of the metric.
        float_metric, quantized_metric: with nothing and with all quantized; ``None`` where no
            metric could be had.
        quantized_db: SQNR of the output with all quantized: on the oracle, or on the runtime that a
            model of it would have, where only the estimate was asked for.
        samples: how many were seen.
        complete: whether the whole of the data was seen, and not interrupted.

    Example:
        >>> found = octavo.sensitivity(model, calibration=loader, data=loader, exact=False)
        >>> found.metric, found.samples, found.layers[0].alone_db
        ('top1', 256, None)
    """

    layers: tuple[LayerSensitivity, ...]
    metric: str
    float_metric: float | None
    quantized_metric: float | None
    quantized_db: float | None
    samples: int
    complete: bool

    def spearman(self) -> float | None:
        """Rank correlation of the estimate and the measured SQNR of a layer alone."""
        pairs = [(s.estimate_db, s.alone_db) for s in self.layers if s.alone_db is not None]
        return _spearman(*zip(*pairs, strict=True)) if len(pairs) > 1 else None

    def table(self) -> Table:
        return Table(self._columns(), tuple(map(self._cells, self.layers)), self._title())

    def _title(self) -> str:
        title = f"Sensitivity of {len(self.layers)} layers, {self.samples} samples"
        if self.float_metric is not None and self.quantized_metric is not None:
            before, after = map(self._metric, (self.float_metric, self.quantized_metric))
            title += f"; {self.metric} {before} -> {after}"
        return title if self.complete else f"{title} (interrupted)"

    def _columns(self) -> tuple[str, ...]:
        if all(layer.alone_db is layer.alone is None for layer in self.layers):
            return ("layer", "estimate dB")
        return (
            *("layer", "estimate dB", "alone dB", f"alone {self.metric}"),
            *("all but dB", f"all but {self.metric}"),
        )

    def _cells(self, layer: LayerSensitivity) -> tuple[str, ...]:
        pairs = ((layer.alone_db, layer.alone), (layer.without_db, layer.without))
        cells = (cell for db, metric in pairs for cell in (_decibels(db), self._metric(metric)))
        return (layer.layer, _decibels(layer.estimate_db), *cells)[: len(self._columns())]

    def _metric(self, value: float | None) -> str:
        digits = 5 if self.metric == Divergence.name else 2
        return "" if value is None else f"{value:.{digits}f}"


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


SENSITIVITY = of(Sensitivity, way_out="octavo.sensitivity returns one")


@called_rightly()
def sensitivity(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    data: Iterable[Any],
    calibration: Iterable[Any] | None = None,
    metric: str | Metric | None = None,
    exact: bool = True,
    mode: str | None = None,
    qconfig: QConfig | QConfigMapping | None = None,
    target: str | None = None,
    inputs: Callable[[Any], Any] | None = None,
    weights: Sequence[WeightMethod] = (),
    bias_correction: bool = True,
    seed: int = 0,
    engine: str | None = None,
    progress: bool = True,
    scope: str = "auto",
    only: Only | None = None,
) -> Sensitivity:
    """Which layers hurt when they are quantized.

    All is found in one pass over ``data``; stopped with Ctrl-C, what was seen so far is returned.

    Args:
        model: as for `octavo.quantize`, and so are ``example_inputs``, ``calibration``, ``mode``,
            ``qconfig``, ``target``, ``inputs``, ``weights`` and ``bias_correction``.
        data: batches to measure on, with labels if there is a metric.
        metric: as for `octavo.compare`; top-1 where the labels allow it. Or ``"divergence"``, of
            the distributions of the next token (of classes, where it is no language model) from
            those of the float model, by which layers are listed then; it is what causal language
            models get with ``scope="modules"``, where none is given.
        exact: measure each layer alone, and all but each, too; else the estimate is all.
        seed: of the directions that the estimate probes.
        engine: ``"ray"`` spreads the batches over a Ray cluster, or over one that is started on
            this machine; the result is the same.
        progress: bars in terminals and notebooks, lines in logs.
        scope, only: as for `octavo.quantize`. Of regions and modules the layers are named as in the
            model, which runs as a whole for each of them: twice a batch, unless ``exact`` is false.

    Raises:
        InputError: no data, or a metric that cannot be had of it.
        CaptureError, PlanError, CalibrationError: as `octavo.quantize`.
        MissingExtra: Ray is not installed.

    Example:
        >>> found = octavo.sensitivity(model, calibration=loader, data=loader)
        >>> sorted(layer.layer for layer in found.layers)
        ['conv1', 'conv2', 'fc']
    """
    require_float(model, "sensitivity")
    expect(BATCHES, data=data)
    target = host_target() if target is None else target
    expect(TEXT, target=target)
    expect(METHODS, weights=weights)
    optional(TEXT, mode=mode)
    optional(BATCHES, calibration=calibration)
    optional(FUNCTION, inputs=inputs)
    expect(SCOPE, scope=scope)
    optional(ONLY, only=only)
    require(engine)
    signature = Signature.of(model)
    if scope == "modules":
        first, data = peek(data, 1)
        for batch in first:
            call = split_batch(batch, signature, inputs)
            signature = with_next_token_loss(model, signature, call.beside(model))
        if metric is None and is_causal(signature):
            metric = Divergence.name
    wanted = Wanted(metric, exact, seed)
    mode = mode or default_mode(scope, calibration, qconfig)
    sees_means = mode == "static" or calibration is not None
    settings = Settings(
        target,
        mode,
        "float32",
        mapping_of(qconfig),
        with_correction(weights, bias_correction and sees_means),
        only,
        progress=progress,
    )
    study: Studied
    if scope == "modules":
        study = study_of_modules(model, settings, wanted)
    else:
        source = Source(model, example_inputs, calibration, inputs)
        study, signature = study_of(source, settings, wanted, scope_of(scope, only))
    batches = track(data, "measuring layers", progress)
    read = (split_batch(batch, signature, inputs) for batch in batches)
    return measured(study, (judged(call, signature, metric) for call in read), engine)


def measured(study: Studied, calls: Iterable[Batch], engine: str | None = None) -> Sensitivity:
    """What is found of a study on these calls.

    Raises:
        InputError: there are none, or the metric cannot be had of them.
        MissingExtra: Ray is not installed.
    """
    with opened(engine, study.opened) as workers:
        sums, complete = _summed(study, workers, enumerate(calls))
    if not sums.samples:
        raise InputError("sensitivity got no data; give at least one batch")
    return _result(study, sums, complete)


def _summed(
    study: Studied,
    workers: Workers[tuple[int, Batch], Sums],
    items: Iterable[tuple[int, Batch]],
) -> tuple[Sums, bool]:
    """All batches, or those that were measured until an interruption; and whether it was all.

    Whoever measured them, they are added in the order of the data, so that not a bit depends on it.
    """
    total, early = study.nothing(), dict[int, Sums]()
    following, complete = 0, True
    try:
        for (index, _), sums in workers.run(items):
            if isinstance(sums, OctavoError):
                raise sums
            early[index] = sums
            while following in early:
                total.add(early.pop(following))
                following += 1
    except KeyboardInterrupt:
        if not total.samples and not early:
            raise
        complete = False
    for index in sorted(early):
        total.add(early[index])
    return total, complete


def _result(study: Studied, sums: Sums, complete: bool) -> Sensitivity:
    layers = []
    for name in study.layers:
        estimate = sqnr_db(sums.signal, sums.noise[name])
        if not study.exact:
            layers.append(LayerSensitivity(name, estimate))
            continue
        alone, without = sums.alone.layers[name], sums.without.layers[name]
        layers.append(
            LayerSensitivity(
                name,
                estimate,
                alone.sqnr_db,
                alone.value(),
                without.sqnr_db,
                without.value(),
            )
        )
    if sums.alone.base.name == Divergence.name and study.exact:
        layers.sort(key=lambda s: -math.inf if s.alone is None else s.alone, reverse=True)
    else:
        layers.sort(key=lambda s: s.estimate_db if s.alone_db is None else s.alone_db)
    return Sensitivity(
        tuple(layers),
        sums.alone.base.name,
        sums.alone.base.value(),
        sums.without.base.value(),
        sums.without.base.sqnr_db,
        sums.samples,
        complete,
    )


def _spearman(one: Iterable[float], other: Iterable[float]) -> float:
    """Rank correlation, of at least two pairs."""
    ranks = [torch.tensor(_ranks(list(values))) for values in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    length = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / length) if length else 0.0


def _ranks(values: list[float]) -> list[float]:
    """The place of each in ascending order; those that are equal share the mean of theirs."""
    order = sorted(values)
    return [(bisect_left(order, v) + bisect_right(order, v) - 1) / 2 for v in values]
