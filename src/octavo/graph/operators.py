"""The operators that a graph may hold: an allow-list, since a graph may come from a file.

An operator is named ``aten.<name>.<overload>``, ``octavo.<name>.default`` or ``python.<name>``
(arithmetic on sizes). Only functional operators are allowed: no operator here writes to an
argument, reads a file or calls back into Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from octavo.errors import CaptureError
from octavo.graph.checked_operators import GUARDS, Guarded
from octavo.graph.graph import Node
from octavo.graph.one_column import OPERATORS as OF_ONE_COLUMN
from octavo.graph.one_column import Widening
from octavo.numerics import octavo_operators

# In the order of torch's own documentation: convolution, pooling, activation, normalization, ...
ATEN = frozenset(
    """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution linear
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d
    relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu prelu elu selu celu
    softplus softshrink hardshrink threshold mish log_sigmoid glu softmax
    log_softmax _softmax _log_softmax
    batch_norm _native_batch_norm_legit_no_training layer_norm native_layer_norm group_norm
    native_group_norm instance_norm rms_norm
    lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    embedding embedding_bag scaled_dot_product_attention matmul bmm mm mv dot vdot addmm addmv
    baddbmm einsum bilinear cosine_similarity pairwise_distance cdist tensordot outer
    add sub mul div rsub neg abs sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
    reciprocal pow sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc erfinv
    floor ceil round trunc frac fmod remainder floor_divide clamp clamp_min clamp_max clip maximum
    minimum fmax fmin lerp addcmul addcdiv nan_to_num logaddexp logit hypot true_divide subtract
    multiply divide negative absolute sgn xlogy sinc special_expit heaviside deg2rad rad2deg
    sum mean prod std var var_mean std_mean amax amin aminmax max min argmax argmin any all norm
    linalg_norm linalg_vector_norm linalg_matrix_norm linalg_cross logsumexp logcumsumexp cumsum
    cumprod cummax cummin diff nansum nanmean count_nonzero median quantile kthvalue topk sort
    argsort bucketize searchsorted flip fliplr flipud roll unique_consecutive _weight_norm
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or
    bitwise_not bitwise_xor bitwise_left_shift bitwise_right_shift isnan isinf isfinite isclose
    where masked_fill
    view reshape reshape_as view_as _unsafe_view flatten unflatten ravel squeeze unsqueeze transpose
    permute t numpy_T mT movedim moveaxis swapaxes swapdims expand expand_as broadcast_to repeat
    repeat_interleave tile narrow select slice split split_with_sizes unsafe_split
    unsafe_split_with_sizes tensor_split chunk unsafe_chunk unbind cat concat stack hstack vstack
    dstack column_stack pad constant_pad_nd
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle unfold im2col col2im
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa
    grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator gather index index_select
    take_along_dim scatter scatter_add slice_scatter select_scatter diagonal_scatter index_put
    index_copy index_fill index_add scatter_reduce masked_scatter diagonal diag_embed tril triu
    tril_indices triu_indices meshgrid broadcast_tensors rot90 one_hot
    view_as_real view_as_complex
    fft_fft fft_ifft fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_fft2 fft_ifft2 fft_fftn fft_ifftn
    fft_rfftn fft_irfftn stft real imag complex angle
    mse_loss l1_loss smooth_l1_loss huber_loss cross_entropy_loss binary_cross_entropy_with_logits
    zeros ones full empty arange linspace eye scalar_tensor zeros_like ones_like full_like
    empty_like new_zeros new_ones new_full new_empty fill zero copy
    dropout feature_dropout alpha_dropout feature_alpha_dropout
    to _to_copy type_as contiguous clone alias detach lift_fresh_copy sym_size sym_numel numel
    """.split()
)

OCTAVO = octavo_operators.NAMES

# Overloads for TorchScript's lists, dicts and numbers in place of types, for packed sequences, and
# those that make a list whose length depends on values.
REFUSED = frozenset(
    """
    to.prim_Device to.prim_dtype to.prim_other copy.Dict_Tensor eq.Tensor_list ne.Tensor_list
    index.list_Tensor index.Tensor_hacked_twin index_put.hacked_twin sym_size.default where.default
    lstm.data gru.data rnn_tanh.data rnn_relu.data stft.center
    tensor_split.tensor_indices_or_sections
    """.split()
)

PYTHON: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "neg": operator.neg,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "sym_float": torch.sym_float,
    "sym_int": torch.sym_int,
    "sym_max": torch.sym_max,
    "sym_min": torch.sym_min,
    "sym_not": torch.sym_not,
    "sym_ite": torch.sym_ite,
}


@cache
def resolve(name: str) -> Callable[..., Any]:
    """The callable of an operator's name.

    Raises:
        CaptureError: the name is not on the allow-list.
    """
    parts = name.split(".")
    if len(parts) == 2 and parts[0] == "python" and parts[1] in PYTHON:
        return PYTHON[parts[1]]
    allowed = {"aten": ATEN, "octavo": OCTAVO}.get(parts[0])
    refused = f"{parts[1]}.{parts[-1]}" in REFUSED if len(parts) == 3 else True
    if not refused and allowed is not None and parts[1] in allowed:
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
        if packet is not None and parts[2] in packet.overloads():
            overload = getattr(packet, parts[2])
            if not overload._schema.is_mutable and _is_on_tensors(overload._schema):
                if name in GUARDS:
                    return Guarded(overload, GUARDS[name])
                return Widening(overload) if name in OF_ONE_COLUMN else overload
    raise CaptureError(f"the operator {name!r} is not one that Octavo runs")


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by name, in the operator's order, with its defaults for those left out.

    Example:
        >>> arguments(Node("y", "aten.softplus.default", ("x",)))
        {'self': 'x', 'beta': 1, 'threshold': 20}
    """
    defaults, _ = _parameters(node.op)
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def with_arguments(node: Node, **changed: Any) -> Node:
    """The node with other values for some of its arguments, by name.

    Example:
        >>> with_arguments(Node("y", "aten.softplus.default", ("x",)), threshold=30).args
        ('x', 1, 30)
    """
    defaults, positional = _parameters(node.op)
    assert changed.keys() <= defaults.keys(), f"{node.op} has no argument of {list(changed)}"
    names = list(defaults)[:positional]
    behind = 1 + max((names.index(name) for name in changed if name in names), default=-1)
    count, known = max(behind, len(node.args)), arguments(node) | changed
    keywords = {**node.kwargs, **changed}
    return replace(
        node,
        args=tuple(known[name] for name in names[:count]),
        kwargs={name: value for name, value in keywords.items() if name not in names[:count]},
    )


@cache
def _parameters(name: str) -> tuple[Mapping[str, Any], int]:
    """The default of each argument, ``None`` where there is none, and how many have a place."""
    declared = resolve(name)._schema.arguments  # type: ignore[attr-defined]
    defaults = {a.name: a.default_value if a.has_default_value() else None for a in declared}
    return defaults, sum(not argument.kwarg_only for argument in declared)


def _is_on_tensors(schema: Any) -> bool:
    """Whether an operator takes or gives a tensor: others work on lists and text."""
    return any("Tensor" in str(value.type) for value in (*schema.arguments, *schema.returns))


def name_of(target: Any) -> str:
    """The name of an operator as torch.export gives it: an overload or a Python function."""
    if isinstance(target, torch._ops.OpOverload):
        # ``mask & other`` has an operator of its own, which does what bitwise_and does.
        return re.sub(r"^aten\.__(and|or|xor)__\.", r"aten.bitwise_\1.", str(target))
    for name, function in PYTHON.items():
        if target is function:
            return f"python.{name}"
    return getattr(target, "__name__", str(target))


def dtype_of(name: str) -> torch.dtype:
    """The dtype of this name, ``"float32"``.

    Raises:
        CaptureError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CaptureError(f"{name!r} is not a dtype")
    return dtype
