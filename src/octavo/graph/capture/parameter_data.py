"""``tensor.data`` while ``torch.export`` looks at a model, where it would read as a tensor from
nowhere.

Layers write to it what their weight has to be: masked (PixelCNN, MADE), of a bounded norm (EEGNet),
clipped (Wasserstein critics). That is a function of the weight as long as the next call changes it
no more, which `octavo.graph.capture.fidelity` finds out.

Tested in tests/graph/capture/test_capture.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DATA: Any = torch.Tensor.data
_READ, _WRITE = _DATA.__get__, _DATA.__set__


class DataIsTheTensor(TorchFunctionMode):
    """Inside, in this thread, what is read from and written to ``data`` is so of the tensor."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func == _READ:
            return args[0].detach()
        if func == _WRITE and _are_alike(*args):
            return args[0].detach().copy_(args[1])
        return func(*args, **(kwargs or {}))


class ParametersStay(TorchFunctionMode):
    """Inside, in this thread, what is written to parameters is written to copies of them.

    For calls of which only matters that they run: they take the slower way through attention.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if args and isinstance(args[0], nn.Parameter):
            if func == _WRITE:
                return None
            if func == _READ:
                return args[0].detach().clone()
            if func.__name__.endswith("_") and not func.__name__.startswith("_"):
                args = (args[0].detach().clone(), *args[1:])
        return func(*args, **(kwargs or {}))


def _are_alike(tensor: Tensor, value: Tensor) -> bool:
    return tensor.shape == value.shape and tensor.dtype == value.dtype


@contextmanager
def values_kept(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards parameters have the memory and the values that they had before."""
    before = [
        (parameter, parameter.detach(), parameter.detach().clone()) for parameter in parameters
    ]
    try:
        yield
    finally:
        for parameter, own, value in before:
            parameter.data = own.copy_(value)
