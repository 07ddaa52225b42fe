"""Rounding that a gradient passes through: what training sees of quantization.

Forward, each of these is what the quantized model computes, to the bit but for `fake_quantize`.
Backward, the rounding counts as the identity inside of the range and as a constant outside of it:
the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018,
arXiv:1712.05877, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from octavo.numerics import affine, octavo_operators
from octavo.numerics.affine import QParams, blocks, broadcast
from octavo.quantization import weights


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """``x`` rounded to what its integers can hold; float32 of the same shape.

    The gradient is that of the identity where ``x`` is in range, and 0 where it is clipped. This
    takes one pass over memory, since the kernel multiplies by ``1 / scale``, for which a value
    half-way between two integers may go the other way than in the quantized model.

    Args:
        x: float, of any shape.
        qparams: one scale for the tensor, for each channel, or for each group of a row.

    Example:
        >>> scheme = octavo.Scheme("int8", symmetric=True)
        >>> p = QParams(torch.tensor(0.5), torch.tensor(0, dtype=torch.int32), scheme)
        >>> x = torch.tensor([0.6, 99.0], requires_grad=True)
        >>> fake_quantize(x, p).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """
    scheme = qparams.scheme
    rows, axis = blocks(x.to(torch.float32), scheme)
    scale, zero_point = qparams.scale.detach(), qparams.zero_point
    if axis is None:
        return torch.fake_quantize_per_tensor_affine(
            rows, scale, zero_point, scheme.qmin, scheme.qmax
        )
    rounded = torch.fake_quantize_per_channel_affine(
        rows, scale.flatten(), zero_point.flatten(), axis, scheme.qmin, scheme.qmax
    )
    return rounded.reshape(x.shape)


def fake_quantize_as_deployed(x: Tensor, qparams: QParams) -> Tensor:
    """`octavo.numerics.affine.fake_quantize`, to the bit, with the gradient of `fake_quantize`.

    It takes several passes over memory: for evaluation.
    """
    rounded = affine.fake_quantize(x.detach().to(torch.float32), qparams)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return rounded
    return _straight_through(fake_quantize(x, qparams), rounded)


def integer_bias(bias: Tensor, step: Tensor) -> Tensor:
    """`octavo.quantization.weights.integer_bias`, straight through."""
    return _straight_through(bias, weights.integer_bias(bias.detach(), step.detach()))


def fake_quantize_learned(x: Tensor, qparams: QParams, gradient_scale: float) -> Tensor:
    """As `fake_quantize`, and the scale gets a gradient too (Esser et al. 2020, Learned Step Size
    Quantization, arXiv:1902.08153, equations 1 to 3).

    With ``v = x / scale``, the derivative by the scale is ``round(v) - v`` inside of the range and
    the end of the range outside of it, times ``gradient_scale``.

    Args:
        x: float, of any shape.
        qparams: as there; the scale may require a gradient.
        gradient_scale: ``1 / sqrt(values * qmax)`` in the paper, so that a scale learns about as
            fast as weights do.
    """
    scheme = qparams.scheme
    rows, axis = blocks(x.to(torch.float32), scheme)
    whole = qparams.scale
    scale = _straight_through(whole * gradient_scale, whole.detach())
    scale, zero_point = (
        broadcast(values.flatten() if values.dim() else values, rows.dim(), axis)
        for values in (scale, qparams.zero_point)
    )
    v = rows / scale
    ends = ((end - zero_point).to(v.dtype) for end in (scheme.qmin, scheme.qmax))
    clipped = torch.clamp(v, *ends)
    return (_rounded(clipped) * scale).reshape(x.shape)


def fake_quantize_dynamic(
    x: Tensor, qmin: int, qmax: int, symmetric: bool, per_token: bool
) -> Tensor:
    """``octavo::fake_quantize_dynamic``, straight through: nothing is out of range."""
    return _straight_through(
        x, octavo_operators.fake_quantize_dynamic(x.detach(), qmin, qmax, symmetric, per_token)
    )


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *settings: Any) -> Tensor:
    """``octavo::attention`` with the gradient of attention whose probabilities are not rounded."""
    causal, scale, gqa, _ = settings
    smooth = functional.scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=gqa
    )
    with torch.no_grad():
        rounded = octavo_operators.attention(q, k, v, mask, *settings)
    return _straight_through(smooth, rounded)


def _rounded(x: Tensor) -> Tensor:
    return _straight_through(x, torch.round(x.detach()))


def _straight_through(smooth: Tensor, rounded: Tensor) -> Tensor:
    """The value of the one, the gradient of the other."""
    return rounded + (smooth - smooth.detach())
