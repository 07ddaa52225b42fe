"""How good outputs are, as running sums over batches: top-1, agreement and SQNR.

Outputs may be any structure of tensors. SQNR counts all floating-point tensors in it; class
decisions are read from the first that has two dimensions or more, the *logits*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from octavo.errors import InputError, first_line
from octavo.graph.losses import IGNORED_LABEL
from octavo.numerics.sqnr import sqnr_db

Metric = Callable[[Any, Any], float]  # of the outputs and labels of the whole set

# How many classes a sample may name and still be right, by the metric's name.
TOP_K = {"top1": 1, "top5": 5}


class Likeness:
    """How alike two models' outputs are: SQNR in dB and agreement in percent.

    Example:
        >>> likeness = Likeness()
        >>> likeness.update(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 3.1]]))
        >>> round(likeness.sqnr_db, 1), likeness.agreement
        (30.0, 100.0)
    """

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.equal = self.decisions = 0

    def update(self, reference: Any, outputs: Any) -> None:
        """Add one batch.

        Raises:
            InputError: the two outputs differ in structure or shape.
        """
        wanted, results = float_tensors(reference), float_tensors(outputs)
        if _shapes(wanted) != _shapes(results):
            raise InputError(
                f"the outputs have shapes {_shapes(results)}, those of the float model "
                f"{_shapes(wanted)}: the two models do not belong together"
            )
        for want, have in zip(wanted, results, strict=True):
            exact = want.double()
            self.signal += float(exact.square().sum())
            self.noise += float((exact - have.double()).square().sum())
        logits, others = logits_of(reference), logits_of(outputs)
        if logits is not None and others is not None:
            axis = class_axis(logits)
            same = logits.argmax(axis) == others.argmax(axis)
            self.equal += int(same.sum())
            self.decisions += same.numel()

    def add(self, other: Likeness) -> None:
        """Add the batches of another."""
        self.signal += other.signal
        self.noise += other.noise
        self.equal += other.equal
        self.decisions += other.decisions

    @property
    def sqnr_db(self) -> float:
        """Signal over noise in dB; infinite where the outputs are equal."""
        return sqnr_db(self.signal, self.noise)

    @property
    def agreement(self) -> float | None:
        """Percent of equal class decisions; ``None`` where the outputs hold no class scores."""
        return 100.0 * self.equal / self.decisions if self.decisions else None


class TaskMetric(Protocol):
    """A task metric over the batches of one contender.

    ``problem`` says why there is no value, ``None`` where there is one. ``update`` returns for each
    sample whether it was answered rightly, bool ``[N]``, where that is what the metric counts and a
    sample has one label.
    """

    name: str
    problem: str | None

    def update(self, outputs: Any, labels: Any) -> Tensor | None: ...

    def value(self) -> float | None: ...


class TopK:
    """Percent of labels that are among the k highest scores.

    Example:
        >>> top1 = TopK("top1")
        >>> top1.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor([ True, False])
        >>> top1.value()
        50.0
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.problem: str | None = None
        self.right = self.total = 0

    def update(self, outputs: Any, labels: Any) -> Tensor | None:
        logits = logits_of(outputs)
        self.problem = self.problem or label_problem(logits, labels)
        if self.problem is not None or logits is None:
            return None
        labels = torch.as_tensor(labels)
        axis = class_axis(logits, labels)
        best = logits.topk(min(TOP_K[self.name], logits.shape[axis]), dim=axis).indices
        right = (best == labels.unsqueeze(axis)).any(dim=axis)[labels != IGNORED_LABEL]
        self.right += int(right.sum())
        self.total += right.numel()
        return right if labels.dim() == 1 else None

    def value(self) -> float | None:
        return 100.0 * self.right / self.total if self.total and self.problem is None else None


class WholeSet:
    """A function of the outputs and labels of the whole set, which are kept for it."""

    def __init__(self, function: Callable[[Any, Any], float]) -> None:
        self.problem: str | None = None
        self.name = getattr(function, "__name__", "metric").replace("<lambda>", "metric")
        self._function = function
        self._outputs: list[Any] = []
        self._labels: list[Any] = []

    def update(self, outputs: Any, labels: Any) -> None:
        self._outputs.append(outputs)
        self._labels.append(labels)

    def value(self) -> float:
        """What the function returns.

        Raises:
            InputError: it raises, or returns no finite number.
        """
        try:
            value = float(self._function(_joined(self._outputs), _joined(self._labels)))
        except Exception as error:
            raise InputError(
                f"the metric {self.name} gives no number: {type(error).__name__}: "
                f"{first_line(error)}; give a function of all outputs and all labels, "
                "(outputs, labels) -> float"
            ) from error
        if not math.isfinite(value):
            raise InputError(f"the metric {self.name} returned {value}")
        return value


def metric_factory(metric: str | Metric | None) -> Callable[[], TaskMetric]:
    """What makes a metric for each contender, as each has its own sums.

    Args:
        metric: ``"top1"`` or ``"top5"``, a function ``(outputs, labels) -> float`` of the whole
            set, or ``None`` for top-1.

    Raises:
        InputError: there is no such metric.
    """
    if callable(metric):
        return lambda: WholeSet(metric)
    name = "top1" if metric is None else metric
    if not isinstance(name, str) or name not in TOP_K:
        raise InputError(
            f"metric={metric!r} is not among {sorted(TOP_K)}; or pass a function "
            "(outputs, labels) -> float"
        )
    return lambda: TopK(name)


def is_called(metric: object, name: str) -> bool:
    """Whether a metric is asked for by this name. One that is an object may make of ``==`` what it
    likes: those of torchmetrics make another metric, which is true.
    """
    return isinstance(metric, str) and metric == name


def float_tensors(outputs: Any) -> list[Tensor]:
    """All floating-point tensors of the outputs, in order."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def logits_of(outputs: Any) -> Tensor | None:
    """The first floating-point tensor of two dimensions or more, if it has two classes or more."""
    first = next((tensor for tensor in float_tensors(outputs) if tensor.dim() >= 2), None)
    return None if first is None or first.shape[class_axis(first)] < 2 else first


def class_axis(logits: Tensor, labels: Tensor | None = None) -> int:
    """The dimension of the classes: the one that the labels lack; without labels a convention.

    ``[N, C]`` -> 1, ``[N, T, C]`` (tokens) -> 2, ``[N, C, H, W]`` (pixels) -> 1.
    """
    if labels is not None:
        for axis in (1, logits.dim() - 1):
            if labels.shape == _without(logits.shape, axis):
                return axis
    return 1 if logits.dim() >= 4 else logits.dim() - 1


def label_problem(logits: Tensor | None, labels: Any) -> str | None:
    """Why labels cannot be compared with the classes of ``logits``; ``None`` where they can."""
    if labels is None:
        return "the data has no labels"
    if logits is None:
        return "the outputs hold no tensor of class scores"
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return f"the labels are a {type(labels).__name__}, not class indices"
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        return f"the labels are {labels.dtype}, not class indices"
    axis = class_axis(logits, labels)
    if labels.shape != _without(logits.shape, axis):
        return f"labels of shape {list(labels.shape)} do not fit outputs {list(logits.shape)}"
    counted = labels[labels != IGNORED_LABEL]
    classes = logits.shape[axis]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        low, high = int(counted.min()), int(counted.max())
        return f"the labels go from {low} to {high}, the outputs have {classes} classes"
    return None


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _shapes(tensors: Sequence[Tensor]) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors]


def _joined(batches: Sequence[Any]) -> Any:
    """Tensors (within any structure) joined along the batch; anything else as one list of items."""
    if all(batch is None for batch in batches):
        return None
    flat = [pytree.tree_flatten(batch) for batch in batches]
    if not all(isinstance(leaf, Tensor) and leaf.dim() for leaves, _ in flat for leaf in leaves):
        return [item for batch in batches for item in batch]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return pytree.tree_unflatten([torch.cat(column) for column in columns], flat[0][1])
