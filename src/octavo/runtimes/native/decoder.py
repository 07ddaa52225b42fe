"""Blocks of decoders on rows of floats, in one native call.

Tested in tests/runtimes/native/test_decoder.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.matrix import NO_MEMORY, NOT_FINITE
from octavo.runtimes.native.products import LayerStruct, Product

LAYERS = ("query", "key", "value", "out", "gate", "up", "down")
OPTIONAL = frozenset({"key", "value", "up"})
NORMS = (
    *("before_attention", "of_queries", "of_keys", "after_attention"),
    *("before_gate", "after_down"),
)
LANES = 8  # the channels of a head are a multiple of so many
ROTATIONS = 2  # so many kinds there can be in a call
_RANGE = 8  # bytes behind a row in int8
AT_ONCE = 1024  # rows: of more, what stands between layers would take much memory
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("weight", "bias")),
        *((name, ctypes.c_float) for name in ("eps", "more")),
        *((name, ctypes.c_int32) for name in ("centered", "reserved")),
    )


class _Places(ctypes.Structure):
    _fields_ = tuple((name, _SIZE) for name in ("layer", "start", "step"))


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, LayerStruct) for name in LAYERS),
        *((name, _Norm) for name in NORMS),
        *((name, _Places) for name in ("queries", "keys", "values")),
        *((name, _SIZE) for name in ("width", "inner", "heads", "shared_heads", "channels")),
        *((name, _SIZE) for name in ("turned", "window")),
        ("slopes", _POINTER),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
        *((name, ctypes.c_int32) for name in ("activation", "rotation", "is_parallel", "reserved")),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("keys", "values")),
        *((name, _SIZE) for name in ("batch_stride", "head_stride", "is_int8")),
        ("past", _POINTER),
    )


class _Rotation(ctypes.Structure):
    _fields_ = (*((name, _POINTER) for name in ("cosine", "sine")), ("stride", _SIZE))


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, _SIZE) for name in ("batch", "tokens", "ahead")),
        *((name, _POINTER) for name in ("x", "y")),
        ("rotations", _Rotation * ROTATIONS),
        *((name, ctypes.c_int32) for name in ("mask_kind", "is_rounded")),
        ("mask", _POINTER),
        *((f"mask_{name}_stride", _SIZE) for name in ("batch", "head", "row")),
        ("sources", _SIZE),
        ("caches", _POINTER),
    )


@dataclass(frozen=True)
class Norm:
    """Each row, less its mean where it is ``centered``, over its root mean square, times
    ``weight + more``, plus ``bias``.

    Attributes:
        weight, bias: float32 ``[size]``, which are read where they stand.
    """

    weight: Tensor
    eps: float
    more: float = 0.0
    bias: Tensor | None = None
    centered: bool = False

    def as_struct(self) -> _Norm:
        bias = None if self.bias is None else self.bias.data_ptr()
        return _Norm(self.weight.data_ptr(), bias, self.eps, self.more, self.centered)


@dataclass(frozen=True)
class Places:
    """Where heads stand in a row of a layer's results: the first at ``start``, each other ``step``
    behind the one before.
    """

    layer: str
    start: int
    step: int

    def as_struct(self) -> _Places:
        return _Places(LAYERS.index(self.layer), self.start, self.step)

    def end(self, heads: int, channels: int) -> int:
        return self.start + (heads - 1) * self.step + channels


@dataclass(frozen=True)
class Block:
    """``y = x + out(attention(norm(x)))``, and of that
    ``y + down(activation(gate(norm(y))) * up(norm(y)))``.

    Attributes:
        layers: by `LAYERS`; those in `OPTIONAL` may be missing: key and value where the query's
            layer has all three, up where nothing is gated.
        norms: by `NORMS`: before attention and before the gate, and if there are any, of each
            head's queries and keys, and of what is added to a row.
        heads, shared_heads, channels: of queries, of keys and values, and of a head.
        scale: of scores.
        activation: of the gate.
        places: where the heads of ``"query"``, ``"key"`` and ``"value"`` stand; in a layer of their
            own, side by side, where it is not said.
        turned: channels of a head that are rotated, the first ones.
        rotation: by which kind of a call's.
        window: so many tokens a row sees at most, its own among them; 0 for all.
        softcap: scores are so large at most; 0 for no limit.
        slopes: float32 ``[heads]``: how much more each score is than that of the token before.
        is_parallel: whether what is behind attention reads ``x``, and not ``y``.
    """

    layers: dict[str, Product]
    norms: dict[str, Norm]
    heads: int
    shared_heads: int
    channels: int
    scale: float
    activation: Activation
    places: dict[str, Places] = field(default_factory=dict)
    turned: int = 0
    rotation: int = 0
    window: int = 0
    softcap: float = 0.0
    slopes: Tensor | None = None
    is_parallel: bool = False

    @property
    def width(self) -> int:
        return self.layers["query"].columns

    def _places(self, name: str) -> Places:
        return self.places.get(name, Places(name, 0, self.channels))

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            ValueError: sizes do not, or a tensor is of another kind.
        """
        missing = set(LAYERS) - OPTIONAL - set(self.layers)
        if missing:
            raise ValueError(f"there is no {min(missing)}")
        inner, attended = self.layers["gate"].rows, self.heads * self.channels
        columns = {"out": attended, "down": inner}
        rows = {"out": self.width, "down": self.width, "up": inner}
        for name, layer in self.layers.items():
            sizes = rows.get(name, layer.rows), columns.get(name, self.width)
            if (layer.rows, layer.columns) != sizes:
                raise ValueError(f"the {name} is not {sizes[0]} x {sizes[1]}")
        for name in ("query", "key", "value"):
            at, heads = self._places(name), self.heads if name == "query" else self.shared_heads
            held = self.layers.get(at.layer)
            if held is None or at.start < 0 or at.end(heads, self.channels) > held.rows:
                raise ValueError(f"the heads of the {name} do not stand in {at.layer}")
        if self.heads % self.shared_heads or self.channels % LANES:
            raise ValueError(f"{self.heads} heads of {self.channels} read {self.shared_heads}")
        if not 0 <= self.turned <= self.channels or self.turned % 2:
            raise ValueError(f"{self.turned} of {self.channels} channels are rotated")
        if self.rotation not in range(ROTATIONS) or self.window < 0:
            raise ValueError(f"rotation {self.rotation}, window {self.window}")
        for name, norm in self.norms.items():
            size = self.channels if name in ("of_queries", "of_keys") else self.width
            for tensor in (norm.weight, norm.bias):
                if tensor is not None and (tensor.shape != (size,) or not _is_floats(tensor)):
                    raise ValueError(f"the norm {name} is not float32 [{size}]")
        slopes = self.slopes
        if slopes is not None and (slopes.shape != (self.heads,) or not _is_floats(slopes)):
            raise ValueError(f"slopes of {self.heads} heads: {list(slopes.shape)}")

    def as_struct(self) -> _Decoder:
        """It points to tensors that this block holds."""
        return _Decoder(
            **{name: layer.layer for name, layer in self.layers.items()},
            **{name: norm.as_struct() for name, norm in self.norms.items()},
            queries=self._places("query").as_struct(),
            keys=self._places("key").as_struct(),
            values=self._places("value").as_struct(),
            width=self.width,
            inner=self.layers["gate"].rows,
            heads=self.heads,
            shared_heads=self.shared_heads,
            channels=self.channels,
            turned=self.turned,
            window=self.window,
            slopes=None if self.slopes is None else self.slopes.data_ptr(),
            scale=self.scale,
            softcap=self.softcap,
            activation=self.activation,
            rotation=self.rotation,
            is_parallel=self.is_parallel,
        )


@dataclass(frozen=True)
class Cache:
    """Where a block finds keys and values, and puts those of a call behind them.

    Attributes:
        keys, values: float32 ``[batch, shared heads, room, channels]``, or int8 ``[batch, shared
            heads, room, channels + 8]``, rows of `octavo.model.language.int8_rows`; channels side
            by side and tokens one after the other. They are not copied.
        past: int64 ``[batch]``: tokens that each text has there.
    """

    keys: Tensor
    values: Tensor
    past: Tensor

    def check(self, block: Block) -> None:
        """Refuse memory that does not fit a block.

        Raises:
            ValueError: it does not.
        """
        keys, values, past = self.keys, self.values, self.past
        strides, shape = keys.stride(), keys.shape
        if shape != values.shape or values.stride() != strides or strides[3] != 1:
            raise ValueError(f"keys {list(shape)} and values {list(values.shape)}")
        dtypes = {keys.dtype, values.dtype}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.int8} or not keys.is_cpu:
            raise ValueError(f"keys of {keys.dtype} and values of {values.dtype}")
        if shape[2] > 1 and strides[2] != shape[3]:
            raise ValueError("keys whose tokens stand apart")
        if past.dtype != torch.int64 or past.dim() != 1 or not past.is_contiguous():
            raise ValueError(f"so many tokens before: {past.dtype}{list(past.shape)}")
        row = block.channels + (_RANGE if keys.dtype == torch.int8 else 0)
        if (shape[0], shape[1], shape[3]) != (len(past), block.shared_heads, row):
            raise ValueError(f"caches {list(shape)} for {len(past)} texts")

    def as_struct(self) -> _Cache:
        keys, values = self.keys.data_ptr(), self.values.data_ptr()
        strides, is_int8 = self.keys.stride()[:2], self.keys.dtype == torch.int8
        return _Cache(keys, values, *strides, is_int8, self.past.data_ptr())


class Caches:
    """One for each block, which were checked.

    Args:
        caches: of the blocks. Those that share ``past`` share their room.
        blocks: of a decoder.

    Attributes:
        batch: so many texts.

    Raises:
        ValueError: a cache does not fit its block.
    """

    def __init__(self, caches: Sequence[Cache], blocks: Sequence[Block]) -> None:
        if len(caches) != len(blocks):
            raise ValueError(f"{len(caches)} caches for {len(blocks)} blocks")
        rooms: dict[int, tuple[Tensor, int]] = {}
        for cache, block in zip(caches, blocks, strict=True):
            cache.check(block)
            room = rooms.get(id(cache.past), (cache.past, cache.keys.shape[2]))[1]
            rooms[id(cache.past)] = cache.past, min(room, cache.keys.shape[2])
        if len({len(past) for past, _ in rooms.values()}) != 1:
            raise ValueError("caches of different numbers of texts")
        self.batch, self._rooms = len(caches[0].past), tuple(rooms.values())
        self._caches = tuple(caches)  # which the structs point to
        self.structs = (_Cache * len(caches))(*(cache.as_struct() for cache in caches))

    def longest(self, tokens: int) -> int:
        """Tokens of the longest text, with so many new ones.

        Raises:
            ValueError: there is no room for them.
        """
        longest = 0
        for past, room in self._rooms:
            low, high = (int(end) for end in past.aminmax())
            if low < 0 or high + tokens > room:
                raise ValueError(f"{tokens} tokens behind {high} in caches of {room}")
            longest = max(longest, high + tokens)
        return longest


class Decoder:
    """Blocks that are called one after the other.

    Raises:
        ValueError: the sizes of a block do not fit together, or not those of the others.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            block.check()
        if len({block.width for block in blocks}) != 1:
            raise ValueError("blocks of different sizes, or none")
        turned = {(block.rotation, block.turned) for block in blocks if block.turned}
        if len({rotation for rotation, _ in turned}) != len(turned):
            raise ValueError("blocks that rotate different numbers of channels alike")
        self.blocks, self.turned = tuple(blocks), dict(turned)
        self._structs = (_Decoder * len(blocks))(*(block.as_struct() for block in blocks))
        loaded = library()
        assert loaded is not None, "whoever packed weights has asked for the library"
        self._call: Any = loaded["octavo_decode"]
        self._call.argtypes = (_POINTER, _SIZE, _POINTER, ctypes.c_int)

    def __call__(
        self,
        x: Tensor,
        rotations: Sequence[tuple[Tensor, Tensor]],
        caches: Caches,
        mask: Tensor | None = None,
        *,
        rounded: bool = False,
    ) -> Tensor | None:
        """What the blocks make of rows; ``None`` where a value is not finite, and then what the
        caches have behind their tokens means nothing.

        Args:
            x: float32 ``[batch, tokens, width]``.
            rotations: cosines and sines of each kind, float32 ``[batch or 1, tokens, turned]``.
            caches: for these blocks and sizes; what they have of tokens is not counted up.
            mask: bool, true for what is seen, or float32 that is added to scores: ``[batch or 1,
                heads or 1, tokens or 1, sources]``, of which the last is the newest token. None
                sees what stands behind it, in any case.
            rounded: layers read eight bits of each value instead of 16.

        Raises:
            ValueError: shapes or types do not fit each other.
        """
        batch, tokens, width = x.shape
        if caches.batch != batch or width != self.blocks[0].width:
            raise ValueError(f"rows {list(x.shape)} for caches of {caches.batch} texts")
        longest = caches.longest(tokens)
        if not _is_floats(x):
            raise ValueError("rows are float32, in one piece")
        for kind, turned in self.turned.items():
            if kind >= len(rotations):
                raise ValueError(f"{len(rotations)} rotations, of which number {kind} is asked for")
            _check_rotation(rotations[kind], batch, tokens, turned)
        if mask is not None:
            mask = _whole_mask(mask, (batch, self.blocks[0].heads, tokens), longest)
        step, results = max(1, AT_ONCE // batch), []
        for first in range(0, tokens, step):
            part = slice(first, first + step)
            turns = [tuple(t[:, part].contiguous() for t in pair) for pair in rotations]
            hidden = len(range(tokens)[part.stop :])  # tokens that have not come yet
            seen = None if mask is None else mask[:, :, part, : mask.shape[3] - hidden]
            result = self._of_part(x[:, part].contiguous(), turns, caches, seen, first, rounded)
            if result is None:
                return None
            results.append(result)
        return results[0] if len(results) == 1 else torch.cat(results, 1)

    def _of_part(
        self,
        x: Tensor,
        rotations: Sequence[tuple[Tensor, ...]],
        caches: Caches,
        mask: Tensor | None,
        ahead: int,
        rounded: bool,
    ) -> Tensor | None:
        """Of so few rows that memory for what stands between layers is small."""
        result, (batch, tokens, _) = torch.empty(x.shape, dtype=torch.float32), x.shape
        call = _Call(
            batch,
            tokens,
            ahead,
            x.data_ptr(),
            result.data_ptr(),
            is_rounded=rounded,
            caches=ctypes.addressof(caches.structs),
        )
        for kind in self.turned:
            cosine, sine = rotations[kind]
            stride = 0 if cosine.shape[0] == 1 else cosine.stride(0)
            call.rotations[kind] = _Rotation(cosine.data_ptr(), sine.data_ptr(), stride)
        if mask is not None:
            call.mask_kind, call.mask = _MASKS[mask.dtype], mask.data_ptr()
            call.sources = mask.shape[3]
            call.mask_batch_stride, call.mask_head_stride, call.mask_row_stride = mask.stride()[:3]
        status = self._call(
            ctypes.addressof(self._structs),
            len(self.blocks),
            ctypes.addressof(call),
            torch.get_num_threads(),
        )
        if status == NO_MEMORY:
            raise MemoryError(f"no memory for {batch * tokens} rows of a decoder")
        return None if status == NOT_FINITE else result


def _is_floats(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.is_cpu


def _check_rotation(of: tuple[Tensor, Tensor], batch: int, tokens: int, turned: int) -> None:
    cosine, sine = of
    if not _is_floats(cosine) or not _is_floats(sine) or cosine.shape != sine.shape:
        raise ValueError("a rotation is float32, in one piece")
    if cosine.shape[0] not in (1, batch) or cosine.shape[1:] != (tokens, turned):
        raise ValueError(f"a rotation of {list(cosine.shape)} for {batch} x {tokens} x {turned}")


_MASKS = {torch.bool: 1, torch.float32: 2}  # kinds, as native/octavo.h counts them


def _whole_mask(mask: Tensor, shape: tuple[int, ...], longest: int) -> Tensor:
    whole, sources = mask.expand(*shape, mask.shape[3]), mask.shape[3]
    if mask.dtype not in _MASKS or (sources > 1 and whole.stride(3) != 1) or not mask.is_cpu:
        raise ValueError(f"a mask of {mask.dtype}{list(mask.shape)}")
    if sources < longest:
        raise ValueError(f"a mask of {sources} tokens for {longest}")
    return whole
