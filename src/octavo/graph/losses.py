"""The losses that models make of labels, outside of their graphs.

A graph is captured without labels. Where ``forward`` makes a loss of them, as in transformers, it
is mostly one of a few, and which of them is found by trying: the float model is called with labels
that are made up, and what it says is compared. So a quantized model that is given labels returns
the loss that the float model would, or says that it has none.

Tested in tests/model/test_transformers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.graph.batches import Batch, Signature
from octavo.graph.calls import LABEL_ARGUMENTS
from octavo.graph.capture.example import signature_of
from octavo.graph.capture.torch_export import left_as_it_was
from octavo.graph.graph import Graph
from octavo.graph.quiet import quiet

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


def _classes(outputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Made-up classes, one of them ignored where there are several of a sample."""
    logits = outputs.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 3) or logits.shape[-1] < 2:
        return None
    shape = logits.shape[:-1]
    classes = (torch.arange(shape.numel(), device=logits.device) * 7 + 1) % logits.shape[-1]
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
    logits = outputs.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return None
    count = torch.arange(logits.numel(), device=logits.device)
    return {"labels": (count % 3 / 2).float().reshape(logits.shape)}


def _are_numbers(labels: Mapping[str, Tensor]) -> bool:
    return "labels" in labels and labels["labels"].is_floating_point()


def _squared_error(outputs: Mapping[str, Any], labels: Mapping[str, Tensor]) -> Tensor:
    return functional.mse_loss(outputs["logits"].squeeze().float(), labels["labels"].squeeze())


def _binary_cross_entropy(outputs: Mapping[str, Any], labels: Mapping[str, Tensor]) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs["logits"], labels["labels"])


_SPAN = ("start_positions", "end_positions")


def _positions(outputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    logits = outputs.get("start_logits")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or "end_logits" not in outputs:
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
# The order is that in which they are tried.
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
        Signature.of(model, graph.arguments), losses=losses_of(model, call, graph.arguments)
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
    outputs = _answer(model, call, {})
    return () if outputs is None else tuple(_agreeing(model, call, outputs, names))


def fitting_loss(names: Sequence[str], labels: Mapping[str, Tensor]) -> Loss | None:
    """The first of these losses (of `LOSSES`) that is made of such labels."""
    return next((loss for loss in map(LOSSES.__getitem__, names) if loss.fits(labels)), None)


def with_loss(names: Sequence[str], outputs: Any, labels: Mapping[str, Tensor]) -> Any:
    """A result with the loss that fits the labels in front; without labels as it is.

    Args:
        names: of `LOSSES`.
        outputs: what the model returns, as a record.
        labels: by argument.
    """
    loss = fitting_loss(names, labels)
    return outputs if loss is None else outputs.with_first("loss", loss.of(outputs, labels))


def _agreeing(
    model: nn.Module, call: Batch, outputs: Mapping[str, Any], names: set[str]
) -> Iterator[str]:
    for name, loss in LOSSES.items():
        labels = loss.example(outputs) if names.issuperset(loss.takes) else None
        answer = None if labels is None else _answer(model, call, labels)
        own = None if answer is None else answer.get("loss")
        if labels is not None and isinstance(own, Tensor) and own.numel() == 1:
            mine = loss.of(outputs, labels)
            if torch.allclose(own.float(), mine.float(), rtol=_ALIKE, atol=_ALIKE):
                yield name


def _answer(
    model: nn.Module, call: Batch, labels: Mapping[str, Tensor]
) -> Mapping[str, Any] | None:
    """What the model returns; ``None`` where it takes no such call, or returns no mapping."""
    config = vars(
        getattr(model, "config", nn.Identity())
    )  # where transformers notes what labels are
    before = dict(config)
    try:
        with quiet(), left_as_it_was(model), torch.no_grad():
            outputs = Batch(call.args, {**call.kwargs, **labels}).run(model)
    except Exception:  # noqa: BLE001  (whatever forward raises for labels of another kind)
        return None
    finally:
        config.clear()
        config.update(before)
    return outputs if isinstance(outputs, Mapping) else None
