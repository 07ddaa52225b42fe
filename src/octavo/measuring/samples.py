"""The samples whose answers quantization changes most."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.batches import Batch, Signature, split_batch, with_floats
from octavo.graph.evaluation import evaluating
from octavo.measuring.metrics import class_axis, float_tensors, logits_of
from octavo.model.model import QuantizedModel
from octavo.numerics.sqnr import sqnr_db
from octavo.progress import track


@dataclass(frozen=True)
class Sample:
    """One sample, before and after.

    Attributes:
        index: its place in the data, from 0.
        inputs: the tensors that the model gets of it, without the axis of the batch.
        label: what the batch says of it, if anything.
        before, after: what the float and the quantized model answer: class scores where there are
            some, else the first tensor of floats; without the axis of the batch.
        sqnr_db: of ``after`` against ``before``.
        changed: the share of its class decisions that differ; 0 where there are no classes.
    """

    index: int
    inputs: tuple[Tensor, ...]
    label: Any
    before: Tensor
    after: Tensor
    sqnr_db: float
    changed: float


def changed_samples(
    model: nn.Module,
    q: nn.Module,
    data: Iterable[Any],
    *,
    inputs: Callable[[Any], Any] | None = None,
    count: int = 6,
    progress: bool = True,
) -> list[Sample]:
    """Those whose decisions change most, then those whose outputs do; the most changed first.

    Args:
        model: the float model that ``q`` was made of. It is left as it was.
        q: the quantized model.
        data: batches.
        inputs: batch -> the model's arguments, where the defaults do not fit.
        count: how many at most. Of a model whose answers are no rows of samples there are none.
        progress: a bar in terminals and notebooks, lines in logs.

    Example:
        >>> worst = changed_samples(model, q, loader, count=2)
        >>> [sample.sqnr_db > 10 for sample in worst]
        [True, True]
    """
    signature, pixels = Signature.of(model), None
    if isinstance(q, QuantizedModel):
        signature, pixels = q.signature, q.pixels
    start = 0
    kept: list[Sample] = []
    with torch.no_grad(), evaluating(model), evaluating(q):
        for batch in track(data, "looking at samples", progress):
            call = split_batch(batch, signature, inputs)
            before, after = with_floats(call, pixels).run(model), call.run(q)
            kept = heapq.nsmallest(count, [*kept, *_samples(start, call, before, after)], _rank)
            start += call.size
    return kept


def _rank(sample: Sample) -> tuple[float, float, int]:
    return (-sample.changed, sample.sqnr_db, sample.index)


def _samples(start: int, call: Batch, before: Any, after: Any) -> Iterator[Sample]:
    one, other = _answer(before), _answer(after)
    if one is None or other is None or one.shape != other.shape or len(one) != call.size:
        return
    rows = [tensor for tensor in call.tensors if tensor.dim() and len(tensor) == call.size]
    labels = call.labels
    is_labelled = isinstance(labels, Tensor) and labels.dim() and len(labels) == call.size
    for index, (want, have) in enumerate(zip(one.float(), other.float(), strict=True)):
        error = (want - have).double()
        yield Sample(
            start + index,
            tuple(row[index] for row in rows),
            labels[index] if is_labelled else None,
            want,
            have,
            sqnr_db(float(want.double().square().sum()), float(error.square().sum())),
            _changed(want, have),
        )


def _answer(outputs: Any) -> Tensor | None:
    logits = logits_of(outputs)
    if logits is not None:
        return logits
    return next((tensor for tensor in float_tensors(outputs) if tensor.dim()), None)


def _changed(before: Tensor, after: Tensor) -> float:
    if not before.dim():
        return 0.0
    axis = class_axis(before[None]) - 1
    if before.shape[axis] < 2:
        return 0.0
    return float((before.argmax(axis) != after.argmax(axis)).float().mean())
