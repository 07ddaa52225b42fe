"""`Int8Cache`: keys and values in int8, for models of transformers. Needs the extra
``transformers``.

>>> from octavo.model.language.int8_cache import Int8Cache             # doctest: +SKIP
>>> cache = Int8Cache(model.config)                                    # doctest: +SKIP
>>> model.generate(ids, past_key_values=cache, max_new_tokens=50)      # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError, MissingExtra
from octavo.model.language.int8_rows import to_floats, to_rows

try:
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "keep a cache in int8") from error


class _Rounded:
    """What a layer of a cache keeps is rows of `int8_rows`; what it gives out is floats."""

    dtype: torch.dtype
    keys: Tensor
    values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)  # type: ignore[misc]
        self.keys, self.values = (t.to(torch.int8) for t in (self.keys, self.values))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:  # type: ignore[attr-defined]
            self.lazy_initialization(key_states, value_states)
        rows = super().update(to_rows(key_states), to_rows(value_states))  # type: ignore[misc]
        keys, values = (to_floats(t, self.dtype) for t in rows)
        return keys, values


class Int8Layer(_Rounded, DynamicLayer):  # type: ignore[misc, unused-ignore]
    """One layer's keys and values: int8 ``[batch, heads, tokens, channels + 8]``."""


class Int8SlidingLayer(_Rounded, DynamicSlidingWindowLayer):  # type: ignore[misc, unused-ignore]
    """The same of the last tokens alone, those in the layer's window."""


class Int8Cache(DynamicCache):  # type: ignore[misc, unused-ignore]
    """A ``DynamicCache`` of transformers that keeps keys and values in int8.

    Each token's row in each head has a range of its own, so a token is rounded once, when it comes
    in, and no token changes another. The model attends to what was rounded from the first call on:
    a text in one call, in parts, or token by token gives the same. It takes beam search, an
    assistant, batches and windows that slide, and everything else that a ``DynamicCache`` does.

    A row of 64 channels takes 72 bytes; 256 in float32 and 128 in bfloat16. One layer's rows are in
    floats at a time, while the layer attends to them: the kernels for attention in int8 have one
    range for all of a tensor.

    In an encoder-decoder model it is the decoder's own. What comes from the encoder is read without
    a call of the cache, and stays float: ``EncoderDecoderCache(Int8Cache(), DynamicCache())``.

    Args:
        config: of the model. Without it no layer has a window that slides.

    Raises:
        InputError: the model has layers that keep other than keys and values (states of linear
            attention, keys of an indexer).
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config=config)
        if config is None:
            self.layer_class_to_replicate = Int8Layer
        else:
            self.layers = [_in_int8(layer) for layer in self.layers]


def _in_int8(layer: Any) -> Int8Layer | Int8SlidingLayer:
    if type(layer) is DynamicLayer:
        return Int8Layer()  # type: ignore[no-untyped-call, unused-ignore]
    if type(layer) is DynamicSlidingWindowLayer:
        return Int8SlidingLayer(layer.sliding_window)
    raise InputError(
        f"the model keeps a {type(layer).__name__}, which is more than keys and values: it has no "
        "form in int8. Generate with the cache that transformers makes"
    )
