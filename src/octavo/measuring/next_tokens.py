"""Causal language models: what they are judged by, which is the token behind each place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.arguments import COUNT, expect, optional
from octavo.errors import InputError
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

    def known(self) -> float:
        """The value.

        Raises:
            InputError: there is none.
        """
        value = self.value()
        if value is None:
            raise InputError(f"the model's logits do not fit the tokens: {self.problem}")
        return value


class Divergence:
    """How far a model's distributions of the next token are from those of another: the mean of
    Kullback and Leibler's ``sum p log(p / q)`` over all places with a label, in nats.

    Example:
        >>> divergence = Divergence()
        >>> p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
        >>> divergence.update(p, q, torch.tensor([[1]]))
        >>> round(divergence.value(), 4)  # 0.5 log(2) + 0.5 log(2 / 3)
        0.1438
    """

    name = "divergence"

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, other: Divergence) -> None:
        """Add the batches of another."""
        self._sum += other._sum
        self._count += other._count

    def update(self, reference: Any, outputs: Any, labels: Any) -> None:
        """Add one batch; places whose label is -100 do not count."""
        exact, other = logits_of(reference), logits_of(outputs)
        if exact is None or other is None or label_problem(exact, labels) is not None:
            return
        places = labels != IGNORED_LABEL
        for p, q in zip(exact[places].split(_PLACES), other[places].split(_PLACES), strict=True):
            log_p, log_q = (functional.log_softmax(x.double(), -1) for x in (p, q))
            self._sum += float(functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
            self._count += len(p)

    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


_PLACES = 128  # at a time: a distribution is of the whole vocabulary, in float64


def perplexity(
    model: Callable[[Tensor], Any], tokens: Tensor, *, window: int = 512, stride: int | None = None
) -> float:
    """How far a causal language model is from knowing the next token of a long text: e to the mean
    loss of all tokens but the first.

    A window moves over the text. Each token is judged once, with what stands before it in the first
    window that comes up to it: the first window judges what follows each of its tokens, the others
    what follows their last ``stride`` ones.

    Args:
        model: takes token ids ``[1, T]`` and returns logits ``[1, T, V]``, or what has them.
        tokens: of the text, int64 ``[T]``.
        window: so many tokens are in a call; the model has to have learned that many.
        stride: by so many the window moves; half a window without it. Few take longer, and give
            each token more to go by.

    Raises:
        InputError: there are fewer than two tokens, or the stride is longer than the window.

    Example:
        >>> uniform = lambda ids: torch.zeros(*ids.shape, 8)
        >>> round(perplexity(uniform, torch.arange(8).repeat(4), window=8), 6)
        8.0
    """
    judge = Perplexity()
    for logits, follows in judged_places(model, tokens, window, stride):
        judge.update(logits, follows)
    return judge.known()


def judged_places(
    model: Callable[[Tensor], Any], tokens: Tensor, window: int, stride: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``[places, V]`` and the tokens ``[places]`` that follow, each of a text's once; some
    at a time, for what is computed of them in float64.

    Args:
        model, tokens, window, stride: as `perplexity` has them.

    Raises:
        InputError: as `perplexity`, or the model returns no logits of the tokens.
    """
    optional(COUNT, stride=stride)
    expect(COUNT, window=window)
    step = max(1, window // 2) if stride is None else stride
    is_text = isinstance(tokens, Tensor) and tokens.dim() == 1 and not tokens.is_floating_point()
    if not is_text or len(tokens) < 2 or window < 2:
        raise InputError(
            "perplexity is of a text of at least two tokens, int64 [T], and windows of two or more"
        )
    if step > window:
        raise InputError(
            f"stride={step} is longer than window={window}: tokens between would not count"
        )
    done, last = 0, len(tokens) - 1  # what stands last has no token behind it
    for start in range(0, last, step):
        end = min(start + window, last)
        with torch.no_grad():
            logits = logits_of(model(tokens[None, start:end]))
        if logits is None or logits.shape[:-1] != (1, end - start):
            found = "none" if logits is None else list(logits.shape)
            raise InputError(
                f"the model returns no logits [1, {end - start}, V] of {end - start} tokens, but "
                f"{found}"
            )
        new = end - done  # places that no window before has judged
        follows = tokens[done + 1 : end + 1]
        yield from zip(logits[0, -new:].split(_PLACES), follows.split(_PLACES), strict=True)
        done = end
        if end == last:
            break


def tells_next_tokens(model: nn.Module, call: Batch) -> bool:
    """Whether a float model is a causal language model: it makes such a loss of labels."""
    return "shifted_cross_entropy" in losses_of(model, call)


def with_next_token_loss(model: nn.Module, signature: Signature, call: Batch) -> Signature:
    """The signature of a model that nobody has captured, with the losses that it makes of labels.

    Args:
        model: the float model.
        signature: of it.
        call: of it, to try what it makes of labels.
    """
    return replace(signature, losses=losses_of(model, replace(call, labels=None)))


def judged(batch: Batch, signature: Signature, metric: str | Metric | None) -> Batch:
    """The batch with labels as a metric reads them: a function reads those that are given.

    Args:
        batch: of data.
        signature: of the model, with its losses.
        metric: as `octavo.search` and `octavo.sensitivity` take it.
    """
    of_tokens = is_causal(signature) and not callable(metric)
    return with_next_tokens(batch, signature) if of_tokens else batch


def is_causal(signature: Signature) -> bool:
    """Whether a model whose losses are known is a causal language model."""
    return "shifted_cross_entropy" in signature.losses


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
