"""Keys and values of the tokens before, where a cache of transformers has them.

A dynamic cache puts new tokens behind the old ones by copying all. Here the memory has room behind
them, and what the cache is given are views: it sees plain tensors, which it may cut, reorder or
replace, and then they are copied once more.

Tested in tests/model/language/test_decoding.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as once
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from octavo.runtimes.native.decoder import Caches

Sizes = tuple[int, int, int]  # batch, heads of keys, channels


class Kept(Protocol):
    """What a cache has of all blocks of a decoder.

    Attributes:
        past: so many tokens.
        most: so many there can be.
    """

    past: int
    most: float

    def caches(self, tokens: int, sizes: Sizes) -> Caches:
        """The memory, with room for so many more; ``sizes`` are for the first ones."""
        ...

    def newest(self, tokens: int) -> Tensor:
        """A copy of what stands behind ``past``: ``[2 * blocks, batch, heads, tokens, size]``."""
        ...

    def advance(self, cache: Any, tokens: int) -> None:
        """Let the cache know that so many were written there."""
        ...


def kept_by(cache: Any, blocks: int) -> Kept | None:
    """What a cache has; ``None`` where it keeps it in another way."""
    base, dynamic, static = _classes()
    if not isinstance(cache, base) or type(cache).update is not base.update:
        return None
    grown = _GROWN.get(cache)
    if grown is not None and grown.is_shown_by(cache):
        return grown
    layers = cache.layers
    if cache.offloading or len(layers) != blocks:
        return None
    kinds = {type(layer) for layer in layers}
    if kinds == {dynamic} and not any(x.is_initialized for x in layers):
        return Grown(layers)
    if not all(x.is_initialized for x in layers):
        return None
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    if len(kinds) != 1 or not tensors or not all(map(_is_readable, tensors)):
        return None
    if any(tensor.shape != tensors[0].shape for tensor in tensors):
        return None
    if kinds == {dynamic}:
        return Grown(layers)
    return Fixed(layers) if kinds == {static} else None


@once
def _classes() -> tuple[Any, Any, Any]:
    from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

    return Cache, DynamicLayer, StaticLayer


def _is_readable(tensor: Any) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.dim() == 4
        and tensor.dtype == torch.float32
        and tensor.is_cpu
        and tensor.numel() > 0
    )


class Grown:
    """Of a dynamic cache: memory of our own with room behind its tokens."""

    most = float("inf")

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self.past = int(layers[0].keys.shape[2]) if layers[0].is_initialized else 0
        self._shown: Sequence[Tensor] = ()
        self._caches: Caches | None = None

    def is_shown_by(self, cache: Any) -> bool:
        """Whether a cache still has what it was given."""
        shown = self._shown
        return (
            cache.layers is self._layers
            and len(shown) == 2 * len(self._layers)
            and all(
                layer.keys is shown[2 * i] and layer.values is shown[2 * i + 1]
                for i, layer in enumerate(self._layers)
            )
        )

    def caches(self, tokens: int, sizes: Sizes) -> Caches:
        if self._caches is None or self._caches.shape[2] < self.past + tokens:
            room = self.past + tokens + max(_ROOM, self.past // 4)
            self._whole = torch.empty((2 * len(self._layers), *sizes[:2], room, sizes[2]))
            if self.past:
                pairs = [pair for layer in self._layers for pair in (layer.keys, layer.values)]
                for own, tensor in zip(self._whole, pairs, strict=True):
                    own[:, :, : self.past] = tensor
            self._caches = Caches(list(zip(self._whole[::2], self._whole[1::2], strict=True)))
        return self._caches

    def newest(self, tokens: int) -> Tensor:
        return self._whole[:, :, :, self.past : self.past + tokens].clone()

    def advance(self, cache: Any, tokens: int) -> None:
        self.past += tokens
        _GROWN[cache] = self
        self._shown = self._whole[:, :, :, : self.past].unbind(0)
        for layer, keys, values in zip(
            self._layers, self._shown[::2], self._shown[1::2], strict=True
        ):
            if not layer.is_initialized:
                layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values


class Fixed:
    """Of a static cache, whose memory has room for all tokens."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self.past, self.most = int(layers[0].cumulative_length), layers[0].keys.shape[2]

    def caches(self, tokens: int, sizes: Sizes) -> Caches:
        return Caches([(layer.keys, layer.values) for layer in self._layers])

    def newest(self, tokens: int) -> Tensor:
        pairs = [tensor for layer in self._layers for tensor in (layer.keys, layer.values)]
        return torch.stack([t[:, :, self.past : self.past + tokens] for t in pairs])

    def advance(self, cache: Any, tokens: int) -> None:
        for layer in self._layers:
            layer.cumulative_length.add_(tokens)


_ROOM = 128  # tokens, at least
_GROWN: WeakKeyDictionary[Any, Grown] = WeakKeyDictionary()
