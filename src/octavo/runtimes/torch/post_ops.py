"""What happens to the sums of oneDNN's int8 kernels: their activations, clips and rounding.

Tested in tests/runtimes/torch/test_int8.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.graph.graph import Node
from octavo.graph.operators import arguments
from octavo.quantization.fusions import CLIPS, ONEDNN
from octavo.runtimes.integers import Integers
from octavo.runtimes.torch import integer_kernels
from octavo.runtimes.torch.chains import Chain, Unsupported

# Kernel -> the activations that it applies itself.
NATIVE = {
    "conv1d": frozenset({"relu"}),
    "conv2d": ONEDNN["conv2d"].activations,
    "conv3d": frozenset[str](),
    "linear": ONEDNN["linear"].activations,
}
# Activation -> oneDNN's name of it.
_NAMES = {"silu": "swish"}
_NO_POST_OP: tuple[str, list[float], str] = ("none", [], "")


@dataclass(frozen=True)
class PostOp:
    """What happens to a kernel's sums.

    Attributes:
        native: the kernel's own post-operation.
        clip: between what its result is clipped behind it, if it is.
        stored: the integers that are made of a float result behind it, if any are.
    """

    native: tuple[str, list[float], str] = _NO_POST_OP
    clip: tuple[float, float] | None = None
    stored: Integers | None = None

    def after(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function with all that is not its own behind it."""
        if self.clip is not None:
            function = _clipping(function, *self.clip)
        return function if self.stored is None else _storing(function, self.stored)


def output(out: Integers | None) -> tuple[float, int, torch.dtype]:
    """A kernel's output scale, zero point and dtype.

    Raises:
        Unsupported: the result is of a type that the kernels do not store.
    """
    if out is None:
        return (1.0, 0, torch.float32)
    if out.dtype != torch.uint8:
        raise Unsupported(f"its result is {out.dtype}, the kernel stores 8 bits")
    return (out.scale, out.zero_point, out.dtype)


def post_op_of(
    chain: Chain, kernel: str, step: Tensor | None = None
) -> tuple[PostOp, tuple[float, int, torch.dtype]]:
    """What a kernel does with its sums, and its output scale, zero point and dtype.

    Args:
        chain: what it runs.
        kernel: a key of ``NATIVE``.
        step: float ``[channels]``, what an integer of the sums is worth, where that is known. Where
            it may be half a step of the result, that is rounded behind the kernel.
    """
    if chain.out is None or step is None or not integer_kernels.meets_halves(step, chain.out):
        return _post_op(chain, kernel), output(chain.out)
    post_op = replace(_post_op(replace(chain, quantize=None), kernel), stored=chain.out)
    return post_op, output(None)


def _post_op(chain: Chain, kernel: str) -> PostOp:
    """The kernel's post-operation, and the clip of its result afterwards if any.

    The kernel itself clips to 0..255. Fewer bits are reached by a tighter hardtanh, which costs
    nothing; where the kernel has none they need a pass of their own.
    """
    kind = None if chain.activation is None else chain.activation.short_op
    narrow = chain.out is not None and is_narrow(chain.out)
    native = NATIVE[kernel]
    if chain.activation is not None and kind not in CLIPS:
        clip = (chain.out.low, chain.out.high) if chain.out is not None and narrow else None
        return PostOp(_native_post_op(chain.activation), clip)
    if kind is None and not narrow:
        return PostOp()
    if kind == "relu" and not narrow and kind in native:
        return PostOp(("relu", [], ""))
    low, high = (float("-inf"), float("inf"))
    if chain.activation is not None:
        low, high = clip_bounds(chain.activation)
    if "hardtanh" not in native:
        if chain.out is None:
            return PostOp(clip=(low, high))
        stored = chain.out.clipped(low, high)
        return PostOp(clip=(stored.low, stored.high))
    if chain.out is not None:
        out = chain.out
        low = max(low, (out.low - out.zero_point) * out.scale)
        high = min(high, (out.high - out.zero_point) * out.scale)
    return PostOp(("hardtanh", [low, high], ""))


def clip_bounds(node: Node) -> tuple[float, float]:
    """The real values between which a relu or hardtanh leaves its input as it is."""
    if node.short_op == "relu":
        return 0.0, float("inf")
    _, low, high = arguments(node).values()
    return float(low), float(high)


def _native_post_op(node: Node) -> tuple[str, list[float], str]:
    name = _NAMES.get(node.short_op, node.short_op)
    if name == "gelu":
        return name, [], arguments(node)["approximate"]
    if name == "leaky_relu":
        return name, [arguments(node)["negative_slope"]], ""
    return name, [], ""


def is_narrow(out: Integers) -> bool:
    """Whether not all of the dtype's integers may be stored."""
    limits = torch.iinfo(out.dtype)
    return out.low > limits.min or out.high < limits.max


def _storing(function: Callable[..., Tensor], out: Integers) -> Callable[..., Tensor]:
    store = integer_kernels.quantize(out)

    def stored(*args: Any) -> Tensor:
        return store(function(*args))

    return stored


def _clipping(function: Callable[..., Tensor], low: float, high: float) -> Callable[..., Tensor]:
    def clipped(*args: Any) -> Tensor:
        return function(*args).clamp_(low, high)

    return clipped
