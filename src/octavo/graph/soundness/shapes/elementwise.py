"""Shapes of elementwise operators, reductions, and what keeps the shape of its first argument.

Their dtypes follow torch's promotion rules. Those are not written down again here: the operator is
run on tensors of one element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from octavo.graph.soundness.shapes.common import Rule, axis_of, broadcast, made, on_sample, require

_ELEMENTWISE = """
    relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu selu celu
    softplus softshrink hardshrink threshold mish log_sigmoid
    add sub mul div rsub neg abs sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
    reciprocal pow sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erfinv
    floor ceil round trunc frac fmod remainder floor_divide clamp clamp_min clamp_max clip maximum
    minimum fmax fmin lerp addcmul addcdiv nan_to_num logaddexp logit hypot true_divide subtract
    multiply divide negative absolute sgn xlogy sinc special_expit heaviside deg2rad rad2deg
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or
    bitwise_not bitwise_xor bitwise_left_shift bitwise_right_shift isnan isinf isfinite isclose
    where masked_fill max.other min.other real imag complex angle
""".split()

# Each result has the shape of ``self``.
_KEEPING = """
    softmax log_softmax _softmax _log_softmax cumsum cumprod logcumsumexp cummax cummin
    flip fliplr flipud roll sort argsort tril triu
    dropout alpha_dropout
    to _to_copy type_as contiguous clone alias detach lift_fresh_copy
    zeros_like ones_like full_like empty_like fill
""".split()

_REDUCING = """
    sum nansum mean nanmean prod std var std_mean var_mean amax amin aminmax all any argmax argmin
    logsumexp count_nonzero norm linalg_vector_norm median max.default min.default max.dim min.dim
""".split()


# Over no axes where they are given none; over all of them in the other operators.
_BY_THE_LETTER = frozenset({"aten::all", "aten::any"})


def _broadcasting(operator: Any, values: Mapping[str, Any]) -> Any:
    shapes = [value.shape for value in values.values() if isinstance(value, Tensor)]
    return made(broadcast(*shapes), on_sample(operator, values).dtype)


def _keeping(operator: Any, values: Mapping[str, Any]) -> Any:
    first = next(iter(values.values()))
    return _as(first.shape, on_sample(operator, values))


def _reducing(operator: Any, values: Mapping[str, Any]) -> Any:
    shape = list(next(iter(values.values())).shape)
    dims = values.get("dim")
    if dims is None or (dims == [] and operator._schema.name not in _BY_THE_LETTER):
        dims = range(len(shape))
    dims = [dims] if isinstance(dims, int) else dims
    gone = {axis_of(dim, len(shape)) for dim in dims}
    sizes = [1 if axis in gone else size for axis, size in enumerate(shape)]
    if not values.get("keepdim"):
        sizes = [size for axis, size in enumerate(sizes) if axis not in gone]
    return _as(sizes, on_sample(operator, values))


def _quantile(operator: Any, values: Mapping[str, Any]) -> Any:
    """As a reduction, for each of several fractions behind one another."""
    reduced = _reducing(operator, values)
    q = values["q"]
    count = list(q.shape) if isinstance(q, Tensor) else []
    return made([*count, *reduced.shape], reduced.dtype)


def _as(shape: Any, sample: Any) -> Any:
    """The sample's dtypes in another shape."""
    if isinstance(sample, Tensor):
        return made(shape, sample.dtype)
    return tuple(made(shape, one.dtype) for one in sample)


def _prelu(operator: Any, values: Mapping[str, Any]) -> Any:
    x, weight = values["self"], values["weight"]
    channels = x.shape[1] if x.dim() > 1 else 1
    require(weight.numel() in (1, channels), f"{weight.numel()} slopes for {channels} channels")
    return made(x.shape, on_sample(operator, values).dtype)


def _copy(operator: Any, values: Mapping[str, Any]) -> Any:
    x, source = values["self"], values["src"]
    require(broadcast(x.shape, source.shape) == tuple(x.shape), "what is copied does not fit")
    return made(x.shape, x.dtype)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _broadcasting),
    **dict.fromkeys(_KEEPING, _keeping),
    **dict.fromkeys(_REDUCING, _reducing),
    "quantile": _quantile,
    "prelu": _prelu,
    "copy": _copy,
}
