"""Keys and values of the tokens before, where a cache of transformers has them.

A dynamic cache puts new tokens behind the old ones by copying all. Here the memory has room behind
them, and what the cache is given are views: it sees plain tensors, which it may cut, reorder or
replace, and then they are copied once more. Of a model in bfloat16 the cache sees a copy, but for
an `Int8Cache`, whose rows native calls read as they are.

Tested in tests/model/language/test_decoding.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as once
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from octavo.model.language.int8_rows import row_bytes
from octavo.runtimes.native.decoder import Block, Cache, Caches


class Kept(Protocol):
    """What a cache has of all blocks of a decoder.

    Attributes:
        past: so many tokens, of the longest text.
    """

    past: int

    def has_room(self, tokens: int) -> bool:
        """Whether there can be so many more."""
        ...

    def mask(self, given: Tensor | None, tokens: int) -> Tensor | None:
        """Of a mask that a call of the model was given for all tokens of its texts, what is not
        known of the cache.
        """
        ...

    def caches(self, batch: int, tokens: int, blocks: Sequence[Block]) -> Caches:
        """The memory, with room for so many more."""
        ...

    def newest(self, tokens: int) -> list[Tensor]:
        """What stands behind the tokens that it has: keys and values of each block."""
        ...

    def advance(self, cache: Any, tokens: int) -> None:
        """Let the cache know that so many were written there."""
        ...


def kept_by(cache: Any, blocks: int, dtype: torch.dtype) -> Kept | None:
    """What a cache has, of keys of a dtype; ``None`` where it keeps it in another way."""
    base, floats, rounded, static = _classes()
    own = getattr(cache, "native_tokens", None)
    if own is not None:
        return own(blocks, dtype)  # type: ignore[no-any-return]
    if not isinstance(cache, base) or type(cache).update is not base.update:
        return None
    grown = _GROWN.get(cache)
    if grown is not None and grown.is_shown_by(cache):
        return grown
    layers = cache.layers
    if cache.offloading or len(layers) != blocks:
        return None
    kinds = {type(layer) for layer in layers}
    if not layers or not (kinds <= floats or kinds <= rounded or kinds == {static}):
        return None
    stored = torch.int8 if kinds <= rounded else dtype
    if any(getattr(layer, "record_past", False) for layer in layers):
        return None
    begun = [layer for layer in layers if layer.is_initialized]
    tensors = [tensor for layer in begun for tensor in (layer.keys, layer.values)]
    if len(begun) not in (0, blocks) or not all(_is_readable(t, stored) for t in tensors):
        return None
    pasts = {int(layer.get_seq_length()) for layer in begun}
    if len(pasts) > 1 or len({tensor.shape[0] for tensor in tensors}) > 1:
        return None
    if kinds == {static}:
        is_one = len({tensor.shape for tensor in tensors}) == 1
        return Fixed(layers) if is_one and dtype == torch.float32 else None
    return Grown(layers, pasts.pop() if pasts else 0, dtype, kinds <= rounded)


def new_cache(config: Any) -> Any:
    """What a decoder of transformers makes where it is given none."""
    from transformers import DynamicCache

    return DynamicCache(config=config)


@once
def _classes() -> tuple[Any, set[Any], set[Any], Any]:
    """Caches, layers that keep floats and grow, those that keep rows of int8, and static ones."""
    from transformers import cache_utils as of

    from octavo.model.language.int8_cache import Int8Layer, Int8SlidingLayer

    floats = {of.DynamicLayer, of.DynamicSlidingWindowLayer}
    return of.Cache, floats, {Int8Layer, Int8SlidingLayer}, of.StaticLayer


def _is_readable(tensor: Any, dtype: torch.dtype) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.dim() == 4
        and tensor.dtype == dtype
        and tensor.is_cpu
        and tensor.numel() > 0
    )


class _Layers:
    """The memory of those layers of a dynamic cache that have one window, and what the cache sees
    of it.

    Attributes:
        layers: of the cache.
        held: tokens in the memory.
        whole: keys and values of each layer, ``[2 * layers, batch, heads, room, size]``: float32,
            or int8 of rows that are rounded.
    """

    def __init__(
        self, layers: Sequence[Any], window: int | None, dtype: torch.dtype, is_rounded: bool
    ) -> None:
        self.layers, self._window, self._dtype = layers, window, dtype
        self._stored = torch.int8 if is_rounded else torch.float32
        self.held = int(layers[0].keys.shape[2]) if layers[0].is_initialized else 0
        self._old = [t for x in layers for t in (x.keys, x.values)] if self.held else []
        self.whole: Any = None
        self._copy: Tensor | None = None  # in the model's dtype, where it is another
        self._shown: Sequence[Tensor] = ()

    def is_shown(self, past: int) -> bool:
        shown = self._shown
        return len(shown) > 0 and all(
            layer.keys is shown[2 * i]
            and layer.values is shown[2 * i + 1]
            and (self._window is None or layer.cumulative_length == past)
            for i, layer in enumerate(self.layers)
        )

    def move(self, batch: int, tokens: int, block: Block) -> None:
        """To memory with room for so many more."""
        old, end = self._old if self.whole is None else self.whole, self.held
        if self._window is not None:
            self.held = min(end, self._window - 1)
        room = self.held + tokens + max(_ROOM, self.held // 4)
        is_rounded = self._stored == torch.int8
        size = row_bytes(block.channels) if is_rounded else block.channels
        shape = (2 * len(self.layers), batch, block.shared_heads, room, size)
        whole = torch.empty(shape, dtype=self._stored)
        if self.held:
            for new, tensor in zip(whole, old, strict=True):
                new[:, :, : self.held] = tensor[:, :, end - self.held : end]
        self.whole, self._old = whole, []
        has_copy = self._dtype != torch.float32 and not is_rounded
        self._copy = whole.to(self._dtype) if has_copy else None

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        each = self.whole.unbind(0)
        return list(zip(each[::2], each[1::2], strict=True))

    def show(self, tokens: int, past: int) -> None:
        """Let the cache see so many new tokens, with which a text has ``past``."""
        start, self.held = self.held, self.held + tokens
        seen = self.whole
        if self._copy is not None:
            new = slice(start, self.held)
            self._copy[:, :, :, new] = seen[:, :, :, new]
            seen = self._copy
        first = 0 if self._window is None else max(0, self.held - (self._window - 1))
        like = torch.empty(0, dtype=self._dtype)  # what the model gives a layer
        shown = self._shown = seen[:, :, :, first : self.held].unbind(0)
        for i, layer in enumerate(self.layers):
            if not layer.is_initialized:
                layer.lazy_initialization(like, like)
            layer.keys, layer.values = shown[2 * i], shown[2 * i + 1]
            if self._window is not None:
                layer.cumulative_length = past


class Grown:
    """Of a dynamic cache: memory of our own with room behind its tokens. Layers with a window lose
    tokens that nobody sees any more when the memory is made anew.
    """

    def __init__(
        self, layers: Sequence[Any], past: int, dtype: torch.dtype, is_rounded: bool
    ) -> None:
        self._of, self.past = layers, past
        of_windows: dict[int | None, list[Any]] = {}
        for layer in layers:
            of_windows.setdefault(getattr(layer, "sliding_window", None), []).append(layer)
        self._parts = [
            _Layers(each, window, dtype, is_rounded) for window, each in of_windows.items()
        ]
        self._caches: Caches | None = None
        self._room = 0
        self._held: list[Tensor] = []  # of each part, for each text

    def is_shown_by(self, cache: Any) -> bool:
        """Whether a cache still has what it was given."""
        return cache.layers is self._of and all(x.is_shown(self.past) for x in self._parts)

    def has_room(self, tokens: int) -> bool:
        return True

    def mask(self, given: Tensor | None, tokens: int) -> Tensor | None:
        return given

    def caches(self, batch: int, tokens: int, blocks: Sequence[Block]) -> Caches:
        if self._caches is None or tokens > self._room:
            sizes = {(block.shared_heads, block.channels) for block in blocks}
            if len(sizes) > 1:
                raise ValueError("blocks whose keys are of different sizes")
            found: dict[int, Cache] = {}
            self._held = []
            for part in self._parts:
                part.move(batch, tokens, blocks[0])
                held = torch.full((batch,), part.held)
                self._held.append(held)
                for layer, pair in zip(part.layers, part.pairs(), strict=True):
                    found[id(layer)] = Cache(*pair, held)
            self._room = min(part.whole.shape[3] - part.held for part in self._parts)
            self._caches = Caches([found[id(layer)] for layer in self._of], blocks)
        return self._caches

    def newest(self, tokens: int) -> list[Tensor]:
        found: dict[int, tuple[Tensor, ...]] = {}
        for part in self._parts:
            new = slice(part.held, part.held + tokens)
            for layer, pair in zip(part.layers, part.pairs(), strict=True):
                found[id(layer)] = tuple(tensor[:, :, new].clone() for tensor in pair)
        return [tensor for layer in self._of for tensor in found[id(layer)]]

    def advance(self, cache: Any, tokens: int) -> None:
        self.past += tokens
        self._room -= tokens
        for held, part in zip(self._held, self._parts, strict=True):
            held += tokens
            part.show(tokens, self.past)
        _GROWN[cache] = self


class Fixed:
    """Of a static cache, whose memory has room for all tokens."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self.past = int(layers[0].cumulative_length) if layers[0].is_initialized else 0

    def has_room(self, tokens: int) -> bool:
        first = self._layers[0]
        return bool(first.is_initialized) and self.past + tokens <= first.keys.shape[2]

    def mask(self, given: Tensor | None, tokens: int) -> Tensor | None:
        return given

    def caches(self, batch: int, tokens: int, blocks: Sequence[Block]) -> Caches:
        past = torch.full((batch,), self.past)
        return Caches([Cache(x.keys, x.values, past) for x in self._layers], blocks)

    def newest(self, tokens: int) -> list[Tensor]:
        pairs = [tensor for layer in self._layers for tensor in (layer.keys, layer.values)]
        return [t[:, :, self.past : self.past + tokens].clone() for t in pairs]

    def advance(self, cache: Any, tokens: int) -> None:
        for layer in self._layers:
            layer.cumulative_length.add_(tokens)


_ROOM = 128  # tokens, at least
_GROWN: WeakKeyDictionary[Any, Grown] = WeakKeyDictionary()
