"""`text_quality`: how well a language model knows a text, and how near it is to another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.display import Result, Table
from octavo.measuring.metrics import Likeness
from octavo.measuring.next_tokens import Divergence, Perplexity, judged_places


@dataclass(frozen=True)
class TextQuality(Result):
    """What a text says of a language model.

    Attributes:
        tokens: so many were judged: all but the first.
        window, stride: as `octavo.perplexity` has them; ``None`` is half a window.
        perplexity: e to the mean loss of the next token.
        reference_perplexity: of the model beside which it was held; ``None`` without one.
        divergence: of the distributions of the next token from that model's, the mean, in nats.
        agreement: percent of places where both hold the same token for the most likely one.
    """

    tokens: int
    window: int
    stride: int | None
    perplexity: float
    reference_perplexity: float | None = None
    divergence: float | None = None
    agreement: float | None = None

    def table(self) -> Table:
        rows = [("perplexity", f"{self.perplexity:.4f}")]
        if self.reference_perplexity is not None:
            change = 100 * (self.perplexity / self.reference_perplexity - 1)
            rows += [
                ("of the other model", f"{self.reference_perplexity:.4f}"),
                ("change", f"{change:+.2f} %"),
                ("divergence of the next token, nats", f"{self.divergence:.5f}"),
                ("same most likely token", f"{self.agreement:.2f} %"),
            ]
        step = f"by {self.stride}" if self.stride else "by half of it"
        note = f"{self.tokens} tokens, in a window of {self.window} that moves {step}"
        return Table(("of the text", "value"), tuple(rows), notes=(note,))


def text_quality(
    model: Callable[[Tensor], Any],
    tokens: Tensor,
    *,
    reference: Callable[[Tensor], Any] | None = None,
    window: int = 512,
    stride: int | None = None,
) -> TextQuality:
    """Perplexity of a text, and beside another model's: divergence and agreement.

    Args:
        model, tokens, window, stride: as `octavo.perplexity` has them.
        reference: another model of the same tokens, the float one mostly.

    Raises:
        InputError: as `octavo.perplexity`, or the two models' logits differ in shape.
    """
    own, other = Perplexity(), Perplexity()
    divergence, likeness = Divergence(), Likeness()
    places = judged_places(model, tokens, window, stride)
    if reference is None:
        for logits, follows in places:
            own.update(logits, follows)
        return TextQuality(len(tokens) - 1, window, stride, own.known())
    beside = judged_places(reference, tokens, window, stride)
    for (logits, follows), (exact, _) in zip(places, beside, strict=True):
        likeness.update(exact, logits)
        divergence.update(exact, logits, follows)
        own.update(logits, follows)
        other.update(exact, follows)
    return TextQuality(
        len(tokens) - 1,
        window,
        stride,
        own.known(),
        other.known(),
        divergence.value(),
        likeness.agreement,
    )
