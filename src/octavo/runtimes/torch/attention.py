"""Attention on integers, by Octavo's own kernel.

Tested in tests/runtimes/torch/test_attention.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.graph.operators import arguments
from octavo.numerics import octavo_operators
from octavo.numerics.native import library
from octavo.runtimes.integers import Integers
from octavo.runtimes.native.attention import MOST_LEVELS, MOST_SOURCES, attention_of_integers
from octavo.runtimes.torch import integer_kernels
from octavo.runtimes.torch.chains import Call, Chain, Context, Unsupported
from octavo.runtimes.torch.kernel import Kernel


def attention(context: Context, chain: Chain) -> Call:
    """Attention of queries, keys and values in integers, with the rounding of its result."""
    q, k, v, mask, causal, scale, gqa, levels = arguments(chain.layer).values()
    if context.caller == "package":
        raise Unsupported("a compiled library cannot call Octavo's own kernels")
    if library.obstacle():
        raise Unsupported(library.obstacle())
    read = [context.source(arg) for arg in (q, k, v)]
    sources, out = [integers for _, integers in read], chain.out
    types = [*sources, *([] if out is None else [out])]
    other = next((integers.dtype for integers in types if integers.dtype != torch.uint8), None)
    if other is not None or levels > MOST_LEVELS:
        raise Unsupported(f"it computes with {other or 'probabilities'} of more than 8 bits")
    settings = (causal, scale, gqa, levels)
    stored = [] if out is None else [out.scale, out.zero_point, out.low, out.high]
    parameters = [s.scale for s in sources], [s.zero_point for s in sources], stored

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if torch.compiler.is_compiling():
            result: Tensor = torch.ops.octavo.attention_of_integers.default(
                q, k, v, mask, *settings, *parameters
            )
            return result
        if not 0 < k.shape[-2] <= MOST_SOURCES:
            return _by_floats((q, k, v), mask, settings, sources, out)
        return attention_of_integers(q, k, v, mask, *settings, *parameters)

    return Call("octavo.attention", kernel, (*(ref for ref, _ in read), mask))


def _by_floats(
    integers: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    settings: tuple[bool, float | None, bool, int],
    sources: list[Integers],
    out: Integers | None,
) -> Tensor:
    """The same for more keys than the kernel takes, or none."""
    q, k, v = (
        integer_kernels.dequantize(source.scale, source.zero_point)(values)
        for values, source in zip(integers, sources, strict=True)
    )
    result = octavo_operators.attention(q, k, v, mask, *settings)
    return result if out is None else integer_kernels.quantize(out)(result)


KERNELS = (Kernel(("attention",), attention),)
