"""What this CPU's int8 kernels do, found by running them.

Tested in tests/runtimes/torch/test_int8.py and tests/runtimes/test_foreign_runtimes.py.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch

from octavo.errors import first_line

_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


@cache
def missing_kernels() -> str | None:
    """Why torch's oneDNN int8 kernels cannot run here; ``None`` where they can."""
    try:
        _dot(1, 1)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        return f"torch has no int8 kernels here ({first_line(error)[:120]})"
    return None


@cache
def saturates() -> bool:
    """Whether u8 x s8 products overflow: without VNNI, pairs of them are summed in int16.

    Found by computing a dot product that does not fit, which also sees
    ``ONEDNN_MAX_CPU_ISA``.
    """
    return missing_kernels() is None and _dot(255, 127) != 255 * 127 * 64


@cache
def has_bf16() -> bool:
    """Whether there are instructions for bf16, and ``ONEDNN_MAX_CPU_ISA`` lets oneDNN use them."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BF16:
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def has_amx() -> bool:
    """Whether there are AMX's tiles, and ``ONEDNN_MAX_CPU_ISA`` lets oneDNN use them."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return torch.cpu._is_amx_tile_supported() and (most in ("", "ALL", "DEFAULT") or "AMX" in most)


def host_target() -> str:
    """The name of the target that suits the CPU this runs on.

    Returns:
        ``"x86-avx2"`` where products of int8 overflow (no VNNI), else ``"x86"``.

    Example:
        >>> host_target() in ("x86", "x86-avx2")
        True
    """
    return "x86-avx2" if saturates() else "x86"


@cache
def name() -> str:
    """What its maker calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def kind() -> str:
    """What decides which way of running a model is the fastest: the CPU's name, its instructions as
    far as they are let be used, and the number of its cores.
    """
    extras = [
        *([] if saturates() else ["VNNI"]),
        *(["bf16"] if has_bf16() else []),
        *(["AMX"] if has_amx() else []),
    ]
    instructions = " ".join([torch.backends.cpu.get_cpu_capability(), *extras])
    return f"{name()}, {instructions}, {os.cpu_count() or 1} cores"


def _dot(activation: int, weight: int) -> int:
    """The dot product of 64 equal activations and weights, by the int8 linear kernel."""
    x = torch.full((16, 64), activation, dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(
        torch.full((16, 64), weight, dtype=torch.int8), [16, 64]
    )
    scale, zero_point = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    result = torch.ops.onednn.qlinear_pointwise.default(
        x, 1.0, 0, packed, scale, zero_point, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return int(result[0, 0].item())
