"""`SideBySide`: the keys and values of several texts, which come and go. Needs the extra
``transformers``.

The texts of a running batch are of different lengths. Each has a row of one table a layer, from its
first token on; what stands behind its last one is masked. A text that comes is written into the
next row, and one that goes is closed up by those behind it, so that a call is about neighbouring
rows and reads them in place.

Tested in tests/model/language/test_writing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError, MissingExtra
from octavo.model.language.int8_rows import row_bytes, to_floats, to_rows
from octavo.runtimes.native.decoder import Block, Caches
from octavo.runtimes.native.decoder import Cache as NativeCache

try:
    from transformers.cache_utils import (
        Cache,
        CacheLayerMixin,
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
    )
except ImportError as error:
    raise MissingExtra("transformers", "transformers", "write texts side by side") from error

_GROWTH = 256  # tokens: a table is made anew, longer, when so many more have come


@dataclass
class _Rows:
    """The texts, and where the running call writes: the same in all layers."""

    lengths: list[int] = field(default_factory=list)  # of each text, in tokens
    called: slice = field(default_factory=lambda: slice(0))  # the rows that the call is about
    longest: int = 0  # tokens of the longest one of them, before the call
    places: tuple[Tensor, ...] = ()  # row and column of each new one: [count, 1], [count, new]

    def call(self, first: int, count: int, new: int) -> None:
        """The call that comes now writes so many new tokens of some rows."""
        self.called = slice(first, first + count)
        lengths = self.lengths[self.called]
        self.longest = max(lengths)
        columns = torch.tensor(lengths)[:, None] + torch.arange(new)
        self.places = (torch.arange(first, first + count)[:, None], columns)


class _Layer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """One layer's table of keys and of values: ``[rows, heads, tokens, channels]``."""

    is_sliding = False

    def __init__(self, rows: _Rows, int8: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.rows, self.int8 = rows, int8
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: tables are made as they grow."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys = self._written(self.keys, key_states)
        self.values = self._written(self.values, value_states)
        end = self.rows.longest + key_states.shape[-2]
        seen = self.rows.called, slice(None), slice(end)
        keys, values = self.keys[seen], self.values[seen]
        if self.int8:
            return to_floats(keys, key_states.dtype), to_floats(values, key_states.dtype)
        return keys, values

    def with_room(self, heads: int, new: int, channels: int) -> tuple[Tensor, Tensor]:
        """The tables, of float32 or int8, with room for so many new tokens of each text."""
        size, dtype = (row_bytes(channels), torch.int8) if self.int8 else (channels, torch.float32)
        states, lengths = torch.empty((0, heads, new, size), dtype=dtype), self.rows.lengths
        self.keys = _with_room(self.keys, states, len(lengths), max(lengths))
        self.values = _with_room(self.values, states, len(lengths), max(lengths))
        return self.keys, self.values

    def _written(self, table: Tensor | None, states: Tensor) -> Tensor:
        new = to_rows(states) if self.int8 else states
        table = _with_room(table, new, len(self.rows.lengths), max(self.rows.lengths))
        table.transpose(1, 2)[self.rows.places] = new.transpose(1, 2)
        return table

    def close_up(self, row: int, rows: int) -> None:
        """Rows behind one that is free move up; the last one is cleared, for whoever comes next."""
        for table in (self.keys, self.values):
            if table is not None:
                table[row : rows - 1] = table[row + 1 : rows].clone()
                table[rows - 1] = 0

    def clear(self) -> None:
        self.keys = self.values = None

    def get_seq_length(self) -> int:
        return self.rows.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.rows.longest + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _with_room(table: Tensor | None, new: Tensor, rows: int, longest: int) -> Tensor:
    """A table that has so many rows, and room for the new tokens; zeros are where none was."""
    tokens = longest + new.shape[-2]
    if table is not None and table.shape[0] >= rows and table.shape[2] >= tokens:
        return table
    tokens = -(-tokens // _GROWTH) * _GROWTH
    old = new.new_zeros(0, new.shape[1], 0, new.shape[3]) if table is None else table
    larger = (max(rows, old.shape[0]), new.shape[1], max(tokens, old.shape[2]), new.shape[3])
    made = new.new_zeros(larger)
    made[: old.shape[0], :, : old.shape[2]] = old
    return made


class SideBySide(Cache):  # type: ignore[misc, unused-ignore]
    """A cache of transformers for texts that are written on side by side.

    Args:
        config: of the model.
        int8: keys and values are kept in int8, see `Int8Cache`.

    Attributes:
        limit: so many tokens a text may have at most: the window of layers that have one, whose
            keys are kept by their places; ``None`` where there is no such limit.

    Raises:
        InputError: the model has layers that keep other than keys and values.
    """

    def __init__(self, config: Any, int8: bool = False) -> None:
        self.rows = _Rows()
        windows = [_window_of(layer) for layer in DynamicCache(config=config).layers]
        self.limit = min((window for window in windows if window is not None), default=None)
        self._tables, self._int8 = [_Layer(self.rows, int8) for _ in windows], int8
        super().__init__(layers=list(self._tables))

    def __len__(self) -> int:
        return len(self.rows.lengths)

    def append(self) -> int:
        """A row for one more text; its place."""
        self.rows.lengths.append(0)
        return len(self) - 1

    def remove(self, row: int) -> None:
        """A text goes; those behind it move up by one."""
        for layer in self._tables:
            layer.close_up(row, len(self))
        del self.rows.lengths[row]
        if not self.rows.lengths:
            self.reset()

    def reset(self) -> None:
        """All texts go, and their memory."""
        self.rows.lengths.clear()
        for layer in self._tables:
            layer.clear()

    def begin(self, first: int, count: int, new: int) -> tuple[Tensor | None, Tensor]:
        """The next call of the model writes so many new tokens of each of some rows.

        Returns:
            What to call the model with: ``attention_mask``, int64 ``[count, tokens + new]``, which
            texts of one length do without, and ``position_ids``, int64 ``[count, new]``.
        """
        self.rows.call(first, count, new)
        _, columns = self.rows.places
        if len({*self.rows.lengths[self.rows.called]}) == 1:
            return None, columns
        seen = torch.arange(self.rows.longest + new)
        return (seen <= columns[:, -1:]).long(), columns

    def end(self, new: int) -> None:
        """The call is over: its rows have so many tokens more."""
        called = self.rows.called
        self.rows.lengths[called] = [length + new for length in self.rows.lengths[called]]

    def native_tokens(self, blocks: int, dtype: torch.dtype) -> _Written | None:
        """For native calls of so many blocks, which write into the tables.

        Args:
            blocks: of the model.
            dtype: of what these give the tables; ``None`` comes back where tables are of that, and
                not float32.
        """
        is_native = self._int8 or dtype == torch.float32
        return _Written(self) if is_native and blocks == len(self._tables) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        tables = [t for layer in self._tables for t in (layer.keys, layer.values) if t is not None]
        return sum(table.nbytes for table in tables)


class _Written:
    """The rows of the running call, as native calls have them: see
    `octavo.model.language.kept_tokens.Kept`.
    """

    def __init__(self, cache: SideBySide) -> None:
        self._cache, self.past = cache, cache.rows.longest

    def has_room(self, tokens: int) -> bool:
        _, columns = self._cache.rows.places
        return columns.shape[1] == tokens

    def mask(self, given: Tensor | None, tokens: int) -> Tensor | None:
        """None where it is what `SideBySide.begin` told: each text sees all of its tokens."""
        columns = self._cache.rows.places[1]
        if given is not None and given.shape == (len(columns), self.past + tokens):
            seen = torch.arange(self.past + tokens) <= columns[:, -1:]
            return None if torch.equal(given.bool(), seen) else given
        return given

    def caches(self, batch: int, tokens: int, blocks: Sequence[Block]) -> Caches:
        rows = self._cache.rows
        past, own = torch.tensor(rows.lengths[rows.called]), []
        for table, block in zip(self._cache._tables, blocks, strict=True):
            keys, values = table.with_room(block.shared_heads, tokens, block.channels)
            own.append(NativeCache(keys[rows.called], values[rows.called], past))
        return Caches(own, blocks)

    def newest(self, tokens: int) -> list[Tensor]:
        raise NotImplementedError("another cache is asked when calls are compared")

    def advance(self, cache: Any, tokens: int) -> None:
        """`SideBySide.end` does that."""


def _window_of(layer: Any) -> int | None:
    if type(layer) is DynamicLayer:
        return None
    if type(layer) is DynamicSlidingWindowLayer:
        return int(layer.sliding_window)
    raise InputError(
        f"the model keeps a {type(layer).__name__}, which is more than keys and values: its texts "
        "cannot be written side by side. model.generate writes them"
    )
