"""Norms and softmax by Octavo's own kernel: on integers, or of floats that are rounded behind it.

Tested in tests/runtimes/torch/test_normalization.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Node, Ref
from octavo.graph.operators import arguments
from octavo.graph.program import Step
from octavo.graph.qdq import QUANTIZE
from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.normalization import normalize
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported, integers_of
from octavo.runtimes.torch.kernel import Kernel

_NORMS = frozenset({"layer_norm", "rms_norm"})


def of_integers(context: Context, chain: Chain) -> Call:
    """A norm or softmax whose input is integers, as its result is where it is rounded."""
    node, out = chain.layer, chain.out
    if context.caller == "package":
        raise Unsupported("a compiled library cannot call Octavo's own kernels")
    if library.obstacle():
        raise Unsupported(library.obstacle())
    x, source = context.source(node.args[0])
    if source.dtype != torch.uint8 or (out is not None and out.dtype != torch.uint8):
        raise Unsupported("its integers have more than 8 bits")
    parameters, settings = _arguments(context, node)
    read = [source.scale, source.zero_point]
    wanted = (read, out is None, _stored(out))

    def kernel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        given = (x, None, weight, bias, *settings, *wanted)
        compiling = torch.compiler.is_compiling()
        both = torch.ops.octavo.normalize.default(*given) if compiling else normalize(*given)
        result: Tensor = both[0 if out is None else 1]
        return result

    return Call(f"octavo.{node.short_op}", kernel, (x, *parameters))


def with_rounding(context: Context, node: Node) -> list[Step]:
    """A float norm with the rounding of its result, and the addition in front of it, in one step.

    Nothing where it is no such norm. What is rounded is found in `Context.rounded` afterwards.
    """
    users = context.graph.users[node.name]
    rounding = next((user for user in users if user.op == QUANTIZE), None)
    if node.short_op not in _NORMS or rounding is None or context.caller != "python":
        return []
    out = integers_of(rounding)
    if library.obstacle() or out.dtype != torch.uint8 or not _is_float32(context, node.args[0]):
        return []
    try:
        parameters, settings = _arguments(context, node)
    except Unsupported:
        return []
    is_result = node.name in context.graph.output_names()
    both = f"{node.name}.both"
    context.rounded[rounding.name] = (both, 1)
    kernel = _rounded_norm(settings, is_result or len(users) > 1, _stored(out))
    terms = _terms(context, node)
    return [
        Step(both, kernel, (*terms, *parameters)),
        Step(node.name, getitem, (Ref(both), 0)),
    ]


def _rounded_norm(
    settings: tuple[str, int, float], floats: bool, stored: list[float]
) -> Callable[..., tuple[Tensor, Tensor]]:
    def kernel(
        x: Tensor, addend: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if addend is not None and addend.shape != x.shape:
            x, addend = x + addend, None
        return normalize(x, addend, weight, bias, *settings, [], floats, stored)

    return kernel


def _terms(context: Context, norm: Node) -> tuple[Any, Any]:
    """What a norm reads: two terms where it alone reads their sum, else one and nothing."""
    x = norm.args[0]
    sum_of = context.graph.by_name.get(x.name)
    if sum_of is None or sum_of.op != "aten.add.Tensor" or sum_of.kwargs:
        return x, None
    terms = sum_of.args[:2]
    alone = context.graph.only_user(sum_of.name) is not None
    if not alone or not all(isinstance(t, Ref) and _is_float32(context, t) for t in terms):
        return x, None
    return terms[0], terms[1]


def _arguments(context: Context, node: Node) -> tuple[tuple[Any, Any], tuple[str, int, float]]:
    """Weight and bias; the kind of norm, the length of a row and eps.

    Raises:
        Unsupported: it is over another axis, or of lengths that are not known.
    """
    given = arguments(node)
    if node.short_op in _NORMS:
        shape = given["normalized_shape"]
        parameters = given["weight"], given.get("bias")
        if any(p is not None and not _is_float32(context, p) for p in parameters):
            raise Unsupported("its weight is not float32")
        eps = given["eps"]
    else:
        meta = context.graph.metas[node.args[0].name]
        rank = 0 if meta is None else len(meta.shape)
        if given["dim"] not in (-1, rank - 1) or given.get("dtype") is not None or meta is None:
            raise Unsupported("it is over an axis that is not the last")
        shape, parameters, eps = meta.shape[-1:], (None, None), 0.0
    if not shape or not all(isinstance(size, int) for size in shape):
        raise Unsupported("the length of its rows is open")
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return parameters, (node.short_op, math.prod(shape), eps)


def _stored(out: Integers | None) -> list[float]:
    return [] if out is None else [out.scale, out.zero_point, out.low, out.high]


def _is_float32(context: Context, value: Any) -> bool:
    constant = context.graph.constant(value)
    if constant is not None:
        return constant.dtype == torch.float32
    meta = context.graph.metas.get(value.name)
    return meta is not None and meta.dtype == "float32"


KERNELS = (Kernel(("layer_norm", "rms_norm", "softmax"), of_integers),)
