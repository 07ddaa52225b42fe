"""The ``octavo::`` operators: quantize and dequantize as graph nodes.

They are the oracle: they run wherever torch does, and every runtime is tested against them.

- ``octavo::quantize(x, scale, zero_point, qmin, qmax, dtype)``: float to integers.
- ``octavo::dequantize(q, scale, zero_point)``: back to float32. Scale and zero point are numbers,
  or tensors of ``q``'s rank: one value for the tensor, each channel or each group.
- ``octavo::pack_int4(q)`` and ``octavo::unpack_int4(packed, shape, signed)``: integers of four
  bits, two to a byte.
- ``octavo::fake_quantize_dynamic(x, qmin, qmax, symmetric, per_token)``: quantized and dequantized
  with the range that ``x`` itself has.
- ``octavo::attention(q, k, v, mask, causal, scale, gqa, levels)``: scaled dot product attention
  whose probabilities are rounded to ``levels`` steps.

The range is an argument of its own, since seven bits may be kept in a uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from octavo.numerics import affine

_LIBRARY = torch.library.Library("octavo", "DEF")


def quantize(
    x: Tensor,
    scale: float | Tensor,
    zero_point: int | Tensor,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    """Float tensor to integers of ``dtype`` in ``[qmin, qmax]``; for scales see `dequantize`."""
    blocks, scale, zero_point = _in_blocks(x, scale, zero_point)
    if isinstance(scale, Tensor):
        return affine.quantize(blocks, scale, zero_point, qmin, qmax).to(dtype).reshape(x.shape)
    integers = torch.empty_like(x, dtype=dtype)
    for piece, made in _pieces(x, integers):
        made.copy_(affine.quantize(piece, scale, zero_point, qmin, qmax))
    return integers


def fake_quantize(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """What `dequantize` makes of the integers of finite values, float32, without the integers."""
    floats = torch.empty_like(x, dtype=torch.float32)
    for piece, made in _pieces(x, floats):
        rounded = affine.quantize(piece, scale, zero_point, qmin, qmax).to(torch.float32)
        torch.sub(rounded, zero_point, out=made).mul_(scale)
    return floats


_PIECE = 2**16  # values: what they become on the way stays in a cache


def _pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same parts of tensors that lie in memory alike: of large ones on the CPU whose values lie
    side by side, in the order of their axes or with channels last, one piece after the other.
    """
    x = tensors[0]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    is_dense = x.is_contiguous() or (last is not None and x.is_contiguous(memory_format=last))
    if not is_dense or x.device.type != "cpu" or x.numel() <= _PIECE:
        return [tensors]
    rows = [t.as_strided((t.numel(),), (1,), t.storage_offset()).split(_PIECE) for t in tensors]
    return zip(*rows, strict=True)


def dequantize(q: Tensor, scale: float | Tensor, zero_point: int | Tensor) -> Tensor:
    """Integers back to float32.

    Args:
        q: integers.
        scale: a number, or float32 of ``q``'s rank: each size is ``q``'s own, or 1 where all share
            a scale, or a divisor where so many groups of neighbours have one each.
        zero_point: a number, or int32 of the same shape.
    """
    blocks, scale, zero_point = _in_blocks(q, scale, zero_point)
    return affine.dequantize(blocks, scale, zero_point).reshape(q.shape)


def pack_int4(q: Tensor) -> Tensor:
    """Integers of four bits, each in a byte, to uint8 ``[ceil(n / 2)]``: the first of two in the
    lower half.
    """
    nibbles = q.reshape(-1).to(torch.uint8) & 0xF
    if len(nibbles) % 2:
        nibbles = torch.cat([nibbles, nibbles.new_zeros(1)])
    return nibbles[::2] | (nibbles[1::2] << 4)


def unpack_int4(packed: Tensor, shape: list[int], signed: bool) -> Tensor:
    """What `pack_int4` packed, as int8 (``signed``) or uint8 of that shape."""
    _check_packed(packed, shape)
    nibbles = torch.stack([packed & 0xF, packed >> 4], 1).reshape(-1)
    values = nibbles[: _product(shape)].reshape(shape)
    if not signed:
        return values
    return values.to(torch.int8) - ((values & 8) << 1).to(torch.int8)


def fake_quantize_dynamic(
    x: Tensor, qmin: int, qmax: int, symmetric: bool, per_token: bool
) -> Tensor:
    """``x`` rounded to integers whose scale is found from ``x`` itself, back in float32.

    Args:
        x: float.
        qmin, qmax: the range of the integers; the zero point is 0 if ``symmetric``.
        symmetric: the range is centred on zero.
        per_token: one scale for each row (all axes but the last), else one for the tensor.
    """
    scale, zero_point = dynamic_qparams(x, qmin, qmax, symmetric, per_token)
    return affine.dequantize(affine.quantize(x, scale, zero_point, qmin, qmax), scale, zero_point)


def dynamic_qparams(
    x: Tensor, qmin: int, qmax: int, symmetric: bool, per_token: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point, both float32, ``[]`` or ``[*rows, 1]``: of the range that ``x`` has."""
    if per_token:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # faster than aminmax here
    elif x.numel() == 0:
        low = high = x.new_zeros(())
    else:
        low, high = torch.aminmax(x)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    smallest = torch.finfo(torch.float32).tiny ** 0.5
    if symmetric:
        scale = torch.maximum(-low, high).div(min(qmax, -qmin)).clamp(min=smallest)
        return scale, torch.zeros_like(scale)
    # Of halves, which are the same to the bit: of all finite values none is beyond floats.
    scale = (high / 2 - low / 2).div((qmax - qmin) / 2).clamp(min=smallest)
    return scale, (qmin - torch.round(low / scale)).clamp(qmin, qmax)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    gqa: bool,
    levels: int,
) -> Tensor:
    """Scaled dot product attention with rounded probabilities.

    What is rounded is ``exp(score - largest score of the row)``, in (0, 1], before the division by
    its sum, so that long rows keep their small probabilities (Zhang et al. 2024, SageAttention,
    arXiv:2410.02367, section 4.3).

    Args:
        q: float ``[..., heads, targets, channels]``; k and v ``[..., heads, sources, channels]``.
        mask: boolean (True takes part) or float (added to the scores), broadcast to the scores.
        causal: target i sees sources 0..i.
        scale: of the scores; ``1 / sqrt(channels)`` without.
        gqa: k and v have fewer heads, each used by several heads of q.
        levels: number of steps between 0 and 1, 255 for uint8.
    """
    if gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~visible, float("-inf"))
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, float("-inf"))
            if mask.dtype == torch.bool
            else (scores + mask)
        )
    largest = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    rounded = torch.round(torch.exp(scores - largest) * levels)
    return (rounded @ v) / rounded.sum(-1, keepdim=True).clamp(min=1.0)


def _in_blocks(
    x: Tensor, scale: float | Tensor, zero_point: int | Tensor
) -> tuple[Tensor, float | Tensor, int | Tensor]:
    """``x`` with each axis that is quantized in groups as two, and scale and zero point likewise,
    so that they broadcast.
    """
    if not isinstance(scale, Tensor) or not isinstance(zero_point, Tensor):
        return x, scale, zero_point
    check_scales(scale, zero_point, x)
    for axis, (own, size) in reversed(list(enumerate(zip(scale.shape, x.shape, strict=True)))):
        if own not in (size, 1):
            x = x.unflatten(axis, (own, size // own))
            scale, zero_point = scale.unsqueeze(axis + 1), zero_point.unsqueeze(axis + 1)
    return x, scale, zero_point


def check_scales(scale: Tensor, zero_point: Tensor, x: Tensor) -> None:
    """Refuse scales and zero points that are not those of a tensor.

    Raises:
        ValueError: their shape or dtype is another.
    """
    dtypes = (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    alike = scale.shape == zero_point.shape and scale.dim() == x.dim()
    sizes = zip(scale.shape, x.shape, strict=False)
    if not (dtypes and alike and all(n == size or (n > 0 and size % n == 0) for n, size in sizes)):
        raise ValueError(
            f"a scale {scale.dtype}{list(scale.shape)} and a zero point {zero_point.dtype}"
            f"{list(zero_point.shape)} for a tensor of shape {list(x.shape)}; expected float32 and "
            "int32 of its rank, each size 1, the tensor's own or a divisor of it"
        )


def _check_packed(packed: Tensor, shape: list[int]) -> None:
    count = _product(shape)
    if (
        packed.dtype != torch.uint8
        or packed.shape != ((count + 1) // 2,)
        or min(shape, default=1) < 1
    ):
        raise ValueError(
            f"{packed.dtype}{list(packed.shape)} does not hold {shape} integers of four bits"
        )


def _product(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# Shapes and dtypes alone, which is quicker than the arithmetic on tensors without values.
def _meta_quantize(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, dtype=arguments[-1])


def _meta_dequantize(q: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


def _meta_dequantize_by_tensors(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    check_scales(scale, zero_point, q)
    return _meta_dequantize(q)


def _meta_pack_int4(q: Tensor) -> Tensor:
    return q.new_empty((q.numel() + 1) // 2, dtype=torch.uint8)


def _meta_unpack_int4(packed: Tensor, shape: list[int], signed: bool) -> Tensor:
    _check_packed(packed, shape)
    return packed.new_empty(shape, dtype=torch.int8 if signed else torch.uint8)


def _meta_fake_quantize_dynamic(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


def _meta_attention(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, arguments[0], 0.0, arguments[1], scale=arguments[2], enable_gqa=arguments[3]
    )


_OPERATORS: tuple[tuple[str, Callable[..., Tensor], Callable[..., Tensor]], ...] = (
    (
        "quantize(Tensor x, float scale, int zero_point, int qmin, int qmax, ScalarType dtype)"
        " -> Tensor",
        quantize,
        _meta_quantize,
    ),
    (
        "dequantize(Tensor q, float scale, int zero_point) -> Tensor",
        dequantize,
        _meta_dequantize,
    ),
    (
        "dequantize.Tensor(Tensor q, Tensor scale, Tensor zero_point) -> Tensor",
        dequantize,
        _meta_dequantize_by_tensors,
    ),
    ("pack_int4(Tensor q) -> Tensor", pack_int4, _meta_pack_int4),
    (
        "unpack_int4(Tensor packed, int[] shape, bool signed) -> Tensor",
        unpack_int4,
        _meta_unpack_int4,
    ),
    (
        "fake_quantize_dynamic(Tensor x, int qmin, int qmax, bool symmetric, bool per_token)"
        " -> Tensor",
        fake_quantize_dynamic,
        _meta_fake_quantize_dynamic,
    ),
    (
        "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float? scale, bool gqa,"
        " int levels) -> Tensor",
        attention,
        _meta_attention,
    ),
)
NAMES = frozenset(function.__name__ for _, function, _ in _OPERATORS)
for _schema, _function, _meta_function in _OPERATORS:
    _LIBRARY.define(_schema)
    _name = _schema.partition("(")[0]
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _meta_function, "Meta")
