"""`Dequantized`: a quantized weight for those who read it as the float one.

Models look at ``layer.weight`` for its dtype or device, and some compute with it: torch's own
attention, a head that reads the table of the embedding. What they get has shape and dtype at once,
and becomes floats when it is computed with.

Tested in tests/model/nn/test_linear.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Dequantized(Tensor):
    """A float tensor whose values are made when an operator reads it.

    torch's fused transformer kernels do not take it, as they take no subclass of a tensor, and
    leave the work to the modules.
    """

    _floats: Callable[[], Tensor]

    @staticmethod
    def __new__(
        cls,
        floats: Callable[[], Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Dequantized:
        wrapper = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        wrapper._floats = floats
        return wrapper

    def __init__(self, *arguments: Any) -> None:
        """All is done by ``__new__``, as torch has it."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """As for a tensor: it is here so that fused kernels see that this is none."""
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = pytree.tree_map_only(Dequantized, _values, (args, dict(kwargs or {})))
        return function(*args, **kwargs)


def _values(weight: Dequantized) -> Tensor:
    return weight._floats().to(weight.dtype)
