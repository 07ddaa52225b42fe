"""Blocks of decoders on a few rows of floats, in one native call.

Tested in tests/runtimes/native/test_decoder.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.numerics.native.library import library
from octavo.runtimes.native.convolution import Activation
from octavo.runtimes.native.matrix import NO_MEMORY, NOT_FINITE
from octavo.runtimes.native.products import LayerStruct, Product

LAYERS = ("query", "key", "value", "out", "gate", "up", "down")
LANES = 8  # the channels of a head are a multiple of so many
_NORMS = ("before_attention", "of_queries", "of_keys", "before_gate")
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _POINTER), ("eps", ctypes.c_float), ("more", ctypes.c_float))


class _Decoder(ctypes.Structure):
    _fields_ = (
        *((name, LayerStruct) for name in LAYERS),
        *((name, _Norm) for name in _NORMS),
        *((name, _SIZE) for name in ("width", "inner", "heads", "shared_heads", "channels")),
        ("scale", ctypes.c_float),
        ("activation", ctypes.c_int32),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("keys", "values")),
        *((name, _SIZE) for name in ("batch_stride", "head_stride")),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, _SIZE) for name in ("batch", "tokens", "past", "sources")),
        *((name, _POINTER) for name in ("x", "y", "cosine", "sine")),
        ("rotary_stride", _SIZE),
        *((name, ctypes.c_int32) for name in ("mask_kind", "reserved")),
        ("mask", _POINTER),
        *((f"mask_{name}_stride", _SIZE) for name in ("batch", "head", "row")),
        ("caches", _POINTER),
    )


@dataclass(frozen=True)
class Norm:
    """Each row over its root mean square, times ``weight + more``.

    Attributes:
        weight: float32 ``[size]``, which is read where it stands.
    """

    weight: Tensor
    eps: float
    more: float = 0.0

    def as_struct(self) -> _Norm:
        return _Norm(self.weight.data_ptr(), self.eps, self.more)


@dataclass(frozen=True)
class Block:
    """``y = x + out(attention(norm(x)))``, and of that
    ``y + down(activation(gate(norm(y))) * up(norm(y)))``, as Llama has it.

    Attributes:
        layers: by `LAYERS`.
        norms: before attention and before the gate, and if there are any, of each head's queries
            and keys.
        heads, shared_heads, channels: of queries, of keys and values, and of a head.
        scale: of scores.
        activation: of the gate.
    """

    layers: dict[str, Product]
    norms: dict[str, Norm]
    heads: int
    shared_heads: int
    channels: int
    scale: float
    activation: Activation

    @property
    def width(self) -> int:
        return self.layers["query"].columns

    def check(self) -> None:
        """Refuse what does not fit together.

        Raises:
            ValueError: sizes do not, or a tensor is of another kind.
        """
        inner, shared = self.layers["gate"].rows, self.shared_heads * self.channels
        attended = self.heads * self.channels
        expected = {
            **dict.fromkeys(("key", "value"), (shared, self.width)),
            **dict.fromkeys(("gate", "up"), (inner, self.width)),
            "query": (attended, self.width),
            "out": (self.width, attended),
            "down": (self.width, inner),
        }
        for name, sizes in expected.items():
            if (self.layers[name].rows, self.layers[name].columns) != sizes:
                raise ValueError(f"the {name} is not {sizes[0]} x {sizes[1]}")
        if self.heads % self.shared_heads or self.channels % LANES:
            raise ValueError(f"{self.heads} heads of {self.channels} read {self.shared_heads}")
        for name, norm in self.norms.items():
            size = self.channels if name in ("of_queries", "of_keys") else self.width
            if norm.weight.shape != (size,) or not _is_floats(norm.weight):
                raise ValueError(f"the norm {name} is not float32 [{size}]")

    def as_struct(self) -> _Decoder:
        """It points to tensors that this block holds."""
        return _Decoder(
            **{name: layer.layer for name, layer in self.layers.items()},
            **{name: norm.as_struct() for name, norm in self.norms.items()},
            width=self.width,
            inner=self.layers["gate"].rows,
            heads=self.heads,
            shared_heads=self.shared_heads,
            channels=self.channels,
            scale=self.scale,
            activation=self.activation,
        )


class Caches:
    """Where blocks find keys and values, and put those of a call behind them.

    Args:
        pairs: keys and values of each block, float32 ``[batch, shared heads, room, channels]``,
            channels side by side and tokens one after the other. They are not copied.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.pairs = pairs
        for keys, values in pairs:
            strides = keys.stride()
            if keys.shape != values.shape or values.stride() != strides or strides[3] != 1:
                raise ValueError(f"keys {list(keys.shape)} and values {list(values.shape)}")
            if any(t.dtype != torch.float32 or not t.is_cpu for t in (keys, values)):
                raise ValueError(f"keys of {keys.dtype} and values of {values.dtype}")
            if strides[2] != keys.shape[3]:
                raise ValueError("keys whose tokens stand apart")
        self.shape = pairs[0][0].shape
        if any(keys.shape != self.shape for keys, _ in pairs):
            raise ValueError("blocks whose keys are of different sizes")
        self.structs = (_Cache * len(pairs))(
            *(
                _Cache(keys.data_ptr(), values.data_ptr(), *keys.stride()[:2])
                for keys, values in pairs
            )
        )


class Decoder:
    """Blocks that are called one after the other.

    Raises:
        ValueError: the sizes of a block do not fit together, or not those of the others.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            block.check()
        if len({(b.width, b.heads, b.shared_heads, b.channels) for b in blocks}) != 1:
            raise ValueError("blocks of different sizes, or none")
        self.blocks = tuple(blocks)
        self._structs = (_Decoder * len(blocks))(*(block.as_struct() for block in blocks))
        loaded = library()
        assert loaded is not None, "whoever packed weights has asked for the library"
        self._call: Any = loaded["octavo_decode"]
        self._call.argtypes = (_POINTER, _SIZE, _POINTER, ctypes.c_int)

    def __call__(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        caches: Caches,
        past: int,
        mask: Tensor | None = None,
    ) -> Tensor | None:
        """What the blocks make of rows; ``None`` where a value is not finite, and then what the
        caches have behind ``past`` means nothing.

        Args:
            x: float32 ``[batch, tokens, width]``.
            rotary: cosines and sines, float32 ``[batch or 1, tokens, channels]``.
            caches: of as many blocks.
            past: so many tokens are in them.
            mask: bool, true for what is seen, or float32 that is added to scores: ``[batch or 1,
                heads or 1, tokens, sources]``. Without one all is seen that stands before a row's
                own token, of which there is one.

        Raises:
            ValueError: shapes or types do not fit each other.
        """
        batch, tokens, width = x.shape
        first, sizes = self.blocks[0], caches.shape
        sources = past + tokens if mask is None else mask.shape[3]
        fits = sizes[0] == batch and (sizes[1], sizes[3]) == (first.shared_heads, first.channels)
        fits = fits and len(caches.pairs) == len(self.blocks) and past >= 0
        if not fits or not past + tokens <= sources <= sizes[2] or width != first.width:
            raise ValueError(f"rows {list(x.shape)} and {past} tokens in caches {list(sizes)}")
        if len(caches.pairs) != len(self.blocks):
            raise ValueError(f"{len(caches.pairs)} caches for {len(self.blocks)} blocks")
        if mask is None and tokens > 1:
            raise ValueError("several tokens need a mask")
        cosine, sine = rotary
        if not all(map(_is_floats, (x, cosine, sine))) or cosine.shape != sine.shape:
            raise ValueError("rows and rotation are float32, in one piece")
        if cosine.shape[0] not in (1, batch) or cosine.shape[1:] != (tokens, first.channels):
            raise ValueError(f"a rotation of {list(cosine.shape)} for rows {list(x.shape)}")
        result = torch.empty(x.shape, dtype=torch.float32)
        call = _Call(
            batch,
            tokens,
            past,
            sources,
            x.data_ptr(),
            result.data_ptr(),
            cosine.data_ptr(),
            sine.data_ptr(),
            0 if cosine.shape[0] == 1 else tokens * first.channels,
            caches=ctypes.addressof(caches.structs),
        )
        if mask is not None:
            _add_mask(call, mask, (batch, first.heads, tokens, sources))
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


_MASKS = {torch.bool: 1, torch.float32: 2}  # kinds, as native/octavo.h counts them


def _add_mask(call: _Call, mask: Tensor, shape: tuple[int, ...]) -> None:
    whole = mask.expand(shape)
    if mask.dtype not in _MASKS or (shape[3] > 1 and whole.stride(3) != 1) or not mask.is_cpu:
        raise ValueError(f"a mask of {mask.dtype}{list(mask.shape)}")
    call.mask_kind, call.mask = _MASKS[mask.dtype], mask.data_ptr()
    call.mask_batch_stride, call.mask_head_stride, call.mask_row_stride = whole.stride()[:3]
