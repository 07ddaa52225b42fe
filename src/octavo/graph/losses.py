"""The losses that models make of labels, outside of their graphs.

A graph is captured without labels. Where ``forward`` makes a loss of them, as in transformers, it
is mostly one of a few, and which of them is found by trying: the float model is called with labels
that are made up, and what it says is compared. So a quantized model that is given labels returns
the loss that the float model would, or says that it has none.

Tested in tests/model/test_transformers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from octavo.errors import InputError
from octavo.graph.batches import Batch, Signature
from octavo.graph.calls import LABEL_ARGUMENTS
from octavo.graph.capture.example import signature_of
from octavo.graph.capture.torch_export import left_as_it_was
from octavo.graph.graph import Graph
from octavo.graph.quiet import quiet
from octavo.graph.records import Record

IGNORED_LABEL = -100  # what torch's cross-entropy ignores
_ALIKE = 1e-4  # relative error


@dataclass(frozen=True)
class Loss:
    """A loss of some labels.

    Attributes:
        takes: the arguments that it is made of.
        fits: whether it is one of such labels.
        of: the loss, a scalar.
        example: labels to try it with; ``None`` for outputs that are not its own.
    """

    takes: tuple[str, ...]
    fits: Callable[[Mapping[str, Tensor]], bool]
    of: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Tensor]
    example: Callable[[Mapping[str, Any]], dict[str, Tensor] | None]


def shifted_cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """The loss of a causal language model: what stands at each place is told by those before it.

    Args:
        logits: ``[N, T, C]``.
        labels: ``[N, T]``, those at -100 are left out.
        reduction: ``"mean"`` or ``"sum"``.
    """
    shifted = logits[:, :-1].flatten(0, 1).float()
    return functional.cross_entropy(
        shifted, labels[:, 1:].flatten(), ignore_index=IGNORED_LABEL, reduction=reduction
    )


def _cross_entropy(outputs: Mapping[str, Any], labels: Mapping[str, Tensor]) -> Tensor:
    logits = outputs["logits"]
    return functional.cross_entropy(
        logits.flatten(0, -2).float(), labels["labels"].flatten(), ignore_index=IGNORED_LABEL
    )


def _scores(outputs: Mapping[str, Any], name: str, dims: Collection[int]) -> Tensor | None:
    scores = outputs.get(name)
    is_one = isinstance(scores, Tensor) and scores.is_floating_point() and scores.dim() in dims
    return scores if is_one else None


def _classes(outputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Made-up classes, one of them ignored where there are several of a sample."""
    logits = _scores(outputs, "logits", (2, 3))
    if logits is None or logits.shape[-1] < 2:
        return None
    shape = logits.shape[:-1]
    # Neighbours differ, else a loss that weighs its classes would be the plain one.
    classes = (torch.arange(shape.numel(), device=logits.device) + 1) % logits.shape[-1]
    classes = classes.reshape(shape)
    if logits.dim() == 3 and shape[1] > 2:
        classes[:, 1] = IGNORED_LABEL
    return {"labels": classes}


def _tokens(outputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    labels = _classes(outputs)
    return labels if labels is not None and labels["labels"].dim() == 2 else None


def _are_classes(labels: Mapping[str, Tensor]) -> bool:
    return "labels" in labels and not labels["labels"].is_floating_point()


def _numbers(outputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Made-up numbers between 0 and 1, as many as there are scores."""
    logits = _scores(outputs, "logits", (2,))
    if logits is None:
        return None
    count = torch.arange(logits.numel(), device=logits.device)
    return {"labels": (count % 3 / 2).float().reshape(logits.shape)}


def _are_numbers(labels: Mapping[str, Tensor]) -> bool:
    return "labels" in labels and labels["labels"].is_floating_point()


def _squared_error(outputs: Mapping[str, Any], labels: Mapping[str, Tensor]) -> Tensor:
    return functional.mse_loss(outputs["logits"].squeeze().float(), labels["labels"].squeeze())


def _binary_cross_entropy(outputs: Mapping[str, Any], labels: Mapping[str, Tensor]) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        outputs["logits"].float(), labels["labels"].float()
    )


_SPAN = ("start_positions", "end_positions")


def _positions(outputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    logits, ends = (_scores(outputs, f"{end}_logits", (2,)) for end in ("start", "end"))
    if logits is None or ends is None or logits.shape != ends.shape:
        return None
    count = torch.arange(len(logits), device=logits.device)
    length = logits.shape[1]
    return {"start_positions": count % length, "end_positions": (count * 3 + 1) % (length + 2)}


def _span_cross_entropy(outputs: Mapping[str, Any], labels: Mapping[str, Tensor]) -> Tensor:
    """Of where an answer begins and ends; places behind the text are left out."""
    losses = []
    for logits, name in zip(("start_logits", "end_logits"), _SPAN, strict=True):
        length = outputs[logits].shape[1]
        places = labels[name].flatten().clamp(0, length)
        losses.append(functional.cross_entropy(outputs[logits], places, ignore_index=length))
    return torch.stack(losses).mean()


_ONE = ("labels",)
# The order is that in which they are tried; those of the same labels stand together.
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(_ONE, _are_classes, _cross_entropy, _classes),
    "shifted_cross_entropy": Loss(
        _ONE,
        _are_classes,
        lambda outputs, labels: shifted_cross_entropy(outputs["logits"], labels["labels"]),
        _tokens,
    ),
    "squared_error": Loss(_ONE, _are_numbers, _squared_error, _numbers),
    "binary_cross_entropy": Loss(_ONE, _are_numbers, _binary_cross_entropy, _numbers),
    "span_cross_entropy": Loss(
        _SPAN, lambda labels: labels.keys() >= set(_SPAN), _span_cross_entropy, _positions
    ),
}


def signature_with_losses(model: nn.Module, graph: Graph, call: Batch) -> Signature:
    """The signature of a captured model, with the losses that it makes of its labels.

    It makes none of these where ``forward`` takes no labels, was captured with them, returns
    nothing that is called a loss, or computes it in a way of its own.

    Args:
        model: the float model; it is left as it was.
        graph: the model, captured.
        call: that it was captured with.
    """
    return replace(
        Signature.of(model, graph.given_arguments), losses=losses_of(model, call, graph.arguments)
    )


def losses_of(model: nn.Module, call: Batch, captured: Collection[str] = ()) -> tuple[str, ...]:
    """The names of those of `LOSSES` that a float model makes of labels.

    Args:
        model: the float model; it is left as it was.
        call: of it, without labels.
        captured: arguments that are no labels to it, whatever their names.
    """
    parameters = signature_of(model).parameters
    names = {n for n in LABEL_ARGUMENTS if n in parameters and parameters[n].default is None}
    names -= {*captured, *call.kwargs}
    if not any(names.issuperset(loss.takes) for loss in LOSSES.values()):
        return ()
    call, outputs = _answered(model, call)
    return () if outputs is None else tuple(_agreeing(model, call, outputs, names))


def fitting_loss(names: Sequence[str], labels: Mapping[str, Tensor]) -> Loss | None:
    """The first of these losses (of `LOSSES`) that is made of such labels."""
    return next((loss for loss in map(LOSSES.__getitem__, names) if loss.fits(labels)), None)


def with_loss(names: Sequence[str], outputs: Any, labels: Mapping[str, Tensor]) -> Any:
    """A result with the loss that fits the labels in front; without labels as it is.

    Args:
        names: of `LOSSES`.
        outputs: what the model returns, as a record or a dict.
        labels: by argument.

    Raises:
        InputError: the labels are of other sizes, or of classes that there are not.
    """
    loss = fitting_loss(names, labels)
    if loss is None:
        return outputs
    try:
        value = loss.of(outputs, labels)
    except (IndexError, RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{name} of {list(labels[name].shape)}" for name in loss.takes)
        raise InputError(
            f"no loss can be made of {shapes}: {error}; give labels that the float model takes"
        ) from error
    if isinstance(outputs, Record):
        return outputs.with_first("loss", value)
    return type(outputs)({"loss": value, **{n: v for n, v in outputs.items() if n != "loss"}})


def _answered(model: nn.Module, call: Batch) -> tuple[Batch, Mapping[str, Any] | None]:
    """A call and what the model returns: of two samples in place of one, where the model takes
    them. Of one alone, a mean is no other than a sum.
    """
    args, kwargs = pytree.tree_map_only(Tensor, _of_two, (call.args, call.kwargs))
    for tried in (Batch(args, kwargs), call) if call.size == 1 else (call,):
        outputs = _answer(model, tried, {})
        if outputs is not None:
            return tried, outputs
    return call, None


def _of_two(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.shape[:1] == (1,) else tensor


def _agreeing(
    model: nn.Module, call: Batch, outputs: Mapping[str, Any], names: set[str]
) -> Iterator[str]:
    """For each kind of labels, with which the model is called once, the first loss that agrees."""
    for _, alike in groupby(LOSSES, key=lambda name: LOSSES[name].fits):
        own: Any = None
        for name in alike:
            loss = LOSSES[name]
            labels = loss.example(outputs) if names.issuperset(loss.takes) else None
            if labels is None:
                continue
            if own is None:
                own = (_answer(model, call, labels) or {}).get("loss")
            if not isinstance(own, Tensor) or own.numel() != 1:
                break
            mine = loss.of(outputs, labels)
            if torch.allclose(own.float(), mine.float(), rtol=_ALIKE, atol=_ALIKE):
                yield name
                break


def _answer(
    model: nn.Module, call: Batch, labels: Mapping[str, Tensor]
) -> Mapping[str, Any] | None:
    """What the model returns; ``None`` where it takes no such call, or returns no mapping."""
    try:
        with quiet(), left_as_it_was(model), _configs_left(model), torch.no_grad():
            outputs = Batch(call.args, {**call.kwargs, **labels}).run(model)
    except Exception:  # noqa: BLE001  (whatever forward raises for labels of another kind)
        return None
    return outputs if isinstance(outputs, Mapping) else None


@contextmanager
def _configs_left(model: nn.Module) -> Iterator[None]:
    """Configs are afterwards as before: transformers notes in them what labels are."""
    found = (getattr(vars(module).get("config"), "__dict__", None) for module in model.modules())
    before = [(config, dict(config)) for config in found if isinstance(config, dict)]
    try:
        yield
    finally:
        for config, entries in before:
            config.clear()
            config.update(entries)
