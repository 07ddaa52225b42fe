"""A quantized model inside of what traces, scripts or compiles models.

Its kernels are chosen and packed for this CPU already. ``torch.compile`` leaves them as they are;
what records calls cannot hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from octavo.errors import ExportError

_QUANTIZED = "a model that is quantized already"
_WAY_OUT = (
    "octavo.export_onnx(q, path) writes ONNX, octavo.export_package(q, path) compiles it for use "
    "without the model's code, and q.save(path) keeps it for octavo.load; to quantize again, start "
    "from the float model"
)


def is_compiled() -> bool:
    """Whether ``torch.compile`` is looking, which ``torch.export`` does by the same means."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def refuse_tracers(what: str = _QUANTIZED, way_out: str = _WAY_OUT) -> None:
    """Raise where the call that runs is recorded by what cannot hold its kernels.

    Args:
        what: the model.
        way_out: what to do instead.

    Raises:
        ExportError: it is, by ``torch.jit.trace``, ``torch.export`` or ``torch.onnx.export``.
    """
    if torch._C._is_tracing():
        by = "torch.onnx.export" if torch.onnx.is_in_onnx_export() else "torch.jit.trace"
    elif without_values():
        by = "torch.onnx.export" if torch.onnx.is_in_onnx_export() else "torch.export"
    else:
        return
    raise ExportError(f"{by} does not take {what}: {way_out}")


def without_values() -> bool:
    """Whether tensors have no values now, which is how ``torch.export`` looks at a model.

    In this thread: torch's own flags are the whole process's, and another thread may export.
    """
    fake = torch._C._TorchDispatchModeKey.FAKE
    return torch._C._get_dispatch_mode(fake) is not None


def is_plain(tensor: Tensor) -> bool:
    """Whether a kernel may read its memory now: float32 in one piece on the CPU, and nothing that
    looks at tensors stands between.
    """
    return (
        type(tensor) is Tensor
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._C._is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def refuse_scripting(what: str = _QUANTIZED, way_out: str = _WAY_OUT) -> None:
    """Raise, since ``torch.jit.script`` reads code that is not the model.

    Args:
        what, way_out: as for `refuse_tracers`.

    Raises:
        ExportError: always.
    """
    raise ExportError(f"torch.jit.script does not take {what}: {way_out}")


def call_whole(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function as it is, inside of what ``torch.compile`` compiles too, and in the types
    that it was made for, inside of ``torch.autocast`` too: kernels read memory as float32.

    Raises:
        ExportError: as `refuse_tracers`.
    """
    if is_compiled():
        return _uncompiled(function, *args)
    refuse_tracers()
    return _in_own_types(function, *args)


def _in_own_types(function: Callable[..., Any], *args: Any) -> Any:
    kinds = [kind for kind in _AUTOCAST if torch.is_autocast_enabled(kind)]
    if not kinds:
        return function(*args)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        return function(*args)


_AUTOCAST = ("cpu", "cuda")  # kinds of devices


@_disable_dynamo  # as torch.compiler.disable, which would import the compiler now
def _uncompiled(function: Callable[..., Any], *args: Any) -> Any:
    return _in_own_types(function, *args)
