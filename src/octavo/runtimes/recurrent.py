"""LSTM, GRU and RNN layers: integers in the file, computed in float.

torch ships no int8 kernel that takes a whole sequence, and one int8 call for each step costs more
than int8 saves. So the weights are dequantized at load; to bf16 where the CPU has instructions for
it, since there it is the fastest that torch has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from octavo import operators
from octavo.runtimes import cpu
from octavo.runtimes.chains import Call, Chain, Context, Unsupported


def recurrent(context: Context, chain: Chain) -> Call:
    """A recurrent layer in bf16.

    Raises:
        Unsupported: the CPU has no instructions for it; the layer runs in float32 then.
    """
    op = chain.layer.short_op
    if not cpu.has_bf16():
        raise Unsupported(f"torch has no int8 kernel for {op}; it runs in float32")
    function = _in_bf16(operators.resolve(chain.layer.op))
    reason = f"torch has no int8 kernel for {op}; it runs in bf16"
    return Call(f"torch.{op} in bf16", function, chain.layer.args, runs_in_float=reason)


def _in_bf16(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator on bf16 copies of its float32 tensors, its results back in float32.

    Weights are cast at the first call and kept, since they are the same tensors at every call.
    """
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        return value.to(torch.bfloat16)

    def weight(value: Tensor) -> Tensor:
        known = kept.get(id(value))
        if known is None or known[0] is not value:
            known = kept[id(value)] = (value, cast(value))
        return known[1]

    def call(x: Tensor, state: Any, weights: Any, *rest: Any) -> Any:
        result = operator(
            cast(x), pytree.tree_map(cast, state), pytree.tree_map(weight, weights), *rest
        )
        return pytree.tree_map_only(Tensor, lambda t: t.to(torch.float32), result)

    return call
