"""Causal language models: what they are judged by, which is the token behind each place."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.graph.batches import Batch, Signature
from octavo.graph.losses import IGNORED_LABEL, losses_of
from octavo.measuring.metrics import Metric, label_problem, logits_of


class Perplexity:
    """How far a causal language model is from knowing the next token: e to the mean loss.

    The mean is over all tokens of all batches.

    Example:
        >>> perplexity = Perplexity()
        >>> perplexity.update(torch.zeros(1, 3, 4), torch.tensor([[2, 0, -100]]))
        >>> round(perplexity.value(), 4), round(perplexity.loss, 4)
        (4.0, 1.3863)
    """

    name = "perplexity"

    def __init__(self) -> None:
        self.problem: str | None = None
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Any, labels: Any) -> None:
        """Add one batch; ``labels`` ``[N, T]`` say what follows each place, -100 nothing."""
        logits = logits_of(outputs)
        self.problem = self.problem or label_problem(logits, labels)
        if self.problem is None and logits is not None:
            flat = labels.flatten()
            loss = functional.cross_entropy(
                logits.flatten(0, -2).double(), flat, ignore_index=IGNORED_LABEL, reduction="sum"
            )
            self._sum += float(loss)
            self._count += int((flat != IGNORED_LABEL).sum())

    @property
    def loss(self) -> float | None:
        """The mean cross-entropy, in nats."""
        return self._sum / self._count if self._count and self.problem is None else None

    def value(self) -> float | None:
        return None if self.loss is None else math.exp(min(self.loss, 700.0))


def tells_next_tokens(model: nn.Module, call: Batch) -> bool:
    """Whether a float model is a causal language model: it makes such a loss of labels."""
    return "shifted_cross_entropy" in losses_of(model, call)


def judged(batch: Batch, signature: Signature, metric: str | Metric | None) -> Batch:
    """The batch with labels as a metric reads them: a function reads those that are given.

    Args:
        batch: of data.
        signature: of the model, with its losses.
        metric: as `octavo.search` and `octavo.sensitivity` take it.
    """
    is_causal = "shifted_cross_entropy" in signature.losses
    return with_next_tokens(batch, signature) if is_causal and not callable(metric) else batch


def with_next_tokens(batch: Batch, signature: Signature) -> Batch:
    """The batch with labels that say, at each place, which token follows.

    They are the batch's own labels, or its ``input_ids``, moved by one place. What is -100 in the
    labels, or 0 in ``attention_mask``, is left out.

    Args:
        batch: of a causal language model.
        signature: of the model.
    """
    given = dict(zip(signature.names, batch.args, strict=False)) | batch.kwargs
    labels = batch.labels if batch.labels is not None else given.get("input_ids")
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return batch
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        labels = labels.masked_fill(mask == 0, IGNORED_LABEL)
    last = torch.full_like(labels[:, :1], IGNORED_LABEL)
    return replace(batch, labels=torch.cat([labels[:, 1:], last], 1))
