"""Kinds of x86 CPUs, by the instructions that decide how fast and how right int8 is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        name: of the folder with what was measured on such CPUs.
        flag: what /proc/cpuinfo calls the instructions that are new in it.
        onednn: what ``ONEDNN_MAX_CPU_ISA`` calls it, in torch and OpenVINO.
        aten: what ``ATEN_CPU_CAPABILITY`` calls it.
    """

    name: str
    flag: str
    onednn: str
    aten: str


# From the fewest instructions to the most.
KINDS = (
    Kind("avx2", "avx2", "AVX2", "avx2"),
    Kind("avx2-vnni", "avx_vnni", "AVX2_VNNI", "avx2"),
    Kind("avx512", "avx512bw", "AVX512_CORE", "avx512"),
    Kind("avx512-vnni", "avx512_vnni", "AVX512_CORE_VNNI", "avx512"),
    Kind("avx512-vnni-bf16", "avx512_bf16", "AVX512_CORE_BF16", "avx512"),
    Kind("amx", "amx_int8", "AVX512_CORE_AMX", "avx512"),
)
_NO_LIMIT = ("", "ALL", "DEFAULT")


def kind(flags: Collection[str], variables: Mapping[str, str]) -> str:
    """The name of the kind that a process runs as.

    Args:
        flags: of the CPU.
        variables: of the environment, which can act out a lesser kind. That is named so, since its
            times are not those of such a CPU.

    Example:
        >>> kind({"avx2"}, {})
        'avx2'
        >>> kind({"avx2", "avx512bw", "avx512_vnni"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"})
        'avx2-acted-out'
    """
    own = next((k for k in reversed(KINDS) if k.flag in flags), None)
    if own is None:
        return "other"
    limit = variables.get("ONEDNN_MAX_CPU_ISA", "").upper()
    aten = variables.get("ATEN_CPU_CAPABILITY", own.aten).lower()
    acted = next((k for k in KINDS[: KINDS.index(own)] if k.onednn == limit), None)
    if acted is not None:
        return f"{acted.name}-acted-out"
    if limit not in (*_NO_LIMIT, own.onednn):
        return f"{limit.lower()}-acted-out"
    return own.name if aten == own.aten else f"{own.name}-aten-{aten}"
