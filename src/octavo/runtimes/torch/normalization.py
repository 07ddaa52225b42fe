"""Norms and softmax of integers by Octavo's own kernel, where no program runs them.

Tested in tests/runtimes/torch/test_normalization.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.normalization import normalize
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
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
    parameters, settings = norm_arguments(context, node)
    read = [source.scale, source.zero_point]
    wanted = (read, out is None, _stored(out))

    def kernel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        given = (x, None, weight, bias, *settings, *wanted)
        compiling = torch.compiler.is_compiling()
        both = torch.ops.octavo.normalize.default(*given) if compiling else normalize(*given)
        result: Tensor = both[0 if out is None else 1]
        return result

    return Call(f"octavo.{node.short_op}", kernel, (x, *parameters))


def norm_arguments(context: Context, node: Node) -> tuple[tuple[Any, Any], tuple[str, int, float]]:
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
