"""A quantized model inside of what traces, scripts or compiles models.

Its kernels are chosen and packed already. ``torch.compile`` leaves them as they are, and
``torch.export`` keeps their calls; other tracers cannot hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._compile import _disable_dynamo

from octavo.errors import ExportError

_WAY_OUT = (
    "octavo.export_onnx(q, path) writes ONNX, octavo.export_package(q, path) compiles it for use "
    "without Python's model code, and q.save(path) keeps it for octavo.load"
)


def refuse_tracers() -> None:
    """Raise where the call that runs is recorded by what cannot hold its kernels.

    Raises:
        ExportError: it is, by ``torch.jit.trace`` or ``torch.onnx.export``.
    """
    if torch._C._is_tracing() or (torch.compiler.is_exporting() and _for_onnx()):
        by = "torch.onnx.export" if _for_onnx() else "torch.jit.trace"
        raise ExportError(f"{by} does not take a quantized model: {_WAY_OUT}")


def refuse_scripting() -> None:
    """Raise, since ``torch.jit.script`` reads code that is not the model.

    Raises:
        ExportError: always.
    """
    raise ExportError(f"torch.jit.script does not take a quantized model: {_WAY_OUT}")


def _for_onnx() -> bool:
    return bool(torch.onnx.is_in_onnx_export())


@_disable_dynamo  # as torch.compiler.disable, which would import the compiler now
def uncompiled(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function as it is inside of what ``torch.compile`` compiles."""
    return function(*args)
