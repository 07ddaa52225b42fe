"""The layouts of compressed-tensors: ``pack-quantized`` and ``int-quantized``.

Packed: ``weight_packed`` int32 ``[out, in * bits / 32]``, of signed integers plus half of their
range; ``weight_scale`` ``[out, groups]``; ``weight_zero_point`` int32 ``[out * bits / 32, groups]``
packed along the outputs, plus that half too, where weights are affine; ``weight_shape`` int64
``[2]``. As integers: ``weight`` int8 ``[out, in]``, and scales and zero points, not packed.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.model.language.layouts.layout import Layout, Settings, Sizes
from octavo.model.language.layouts.linear_integers import BITS, LinearIntegers
from octavo.model.language.layouts.packing import packed, unpacked

_NAME = "compressed-tensors"
_ZERO, _ORDER = "weight_zero_point", "weight_g_idx"


def _read(sizes: Sizes, tensors: Mapping[str, Tensor], settings: Settings) -> LinearIntegers:
    out, columns = sizes
    scale = tensors["weight_scale"].to(torch.float32)
    if scale.dim() not in (1, 2) or len(scale) != out:
        raise ValueError(
            f"its weight_scale is {list(scale.shape)} for {out} outputs: Octavo reads scales of "
            "channels, and of groups along them"
        )
    scale = scale.reshape(out, -1)
    if "weight_packed" in tensors:
        words = tensors["weight_packed"]
        bits = next((bits for bits in BITS if words.shape[1] == math.ceil(columns * bits / 32)), 0)
        if not bits:
            raise ValueError(f"its weight_packed is {list(words.shape)}: Octavo reads 4 and 8 bits")
        integers = unpacked(words, bits, axis=1)[:, :columns]
    else:
        bits, weight = 8, tensors["weight"]
        if weight.dtype != torch.int8:
            raise ValueError(
                f"its weight is {weight.dtype}: Octavo reads int8, and packed integers"
            )
        integers = (weight.to(torch.int16) + 128).to(torch.uint8)
    if integers.shape != (out, columns):
        raise ValueError(f"its weight is {list(integers.shape)} for a layer of {columns} to {out}")
    zeros = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.int32)
    if _ZERO in tensors:
        kept = tensors[_ZERO]
        if kept.dtype == torch.int32 and kept.shape[0] != out:
            zeros = unpacked(kept, bits, axis=0)[:out].to(torch.int32)
        else:
            zeros = kept.to(torch.int32) + 2 ** (bits - 1)
    if bool((zeros < 0).any()) or bool((zeros >= 2**bits).any()):
        raise ValueError(f"a zero point is none of the integers of {bits} bits")
    layer = LinearIntegers(bits, integers.contiguous(), scale, zeros.reshape(scale.shape))
    if _ORDER in tensors:
        return layer.in_groups(tensors[_ORDER])
    return layer.in_neighbours([group.get("group_size") for group in _weights(settings)])


def _weights(settings: Settings) -> list[dict[str, Any]]:
    """What the config says of weights, for each kind of layers."""
    groups: dict[str, Any] = settings.get("config_groups") or {}
    return [dict(group.get("weights") or {}) for group in groups.values()]


def _write(layer: LinearIntegers) -> dict[str, Tensor]:
    out, columns = layer.integers.shape
    count = 32 // layer.bits
    tensors = {
        "weight_packed": packed(_filled(layer.integers, count, 1), layer.bits, axis=1),
        "weight_scale": layer.scale,
        "weight_shape": torch.tensor([out, columns]),
    }
    if not layer.symmetric:
        tensors[_ZERO] = packed(_filled(layer.zero_point, count, 0), layer.bits, axis=0)
    return tensors


def _filled(integers: Tensor, count: int, axis: int) -> Tensor:
    """With zeros behind, so that words of so many are full."""
    missing = -integers.shape[axis] % count
    sizes = [0, missing] if axis == 1 else [0, 0, 0, missing]
    return torch.nn.functional.pad(integers, sizes)


def _settings(layers: Mapping[str, LinearIntegers], left: Sequence[str]) -> dict[str, Any]:
    kinds: dict[tuple[int, int | None, bool], list[str]] = {}
    for path, layer in layers.items():
        group_size = layer.group_size if layer.scale.shape[1] > 1 else None
        kinds.setdefault((layer.bits, group_size, layer.symmetric), []).append(path)
    groups = {
        f"group_{index}": {
            # One kind is that of all; others name their layers.
            "targets": ["Linear"] if len(kinds) == 1 else paths,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": "channel" if group_size is None else "group",
                "group_size": group_size,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
        for index, ((bits, group_size, symmetric), paths) in enumerate(kinds.items())
    }
    return {
        "quant_method": _NAME,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(left),
        "kv_cache_scheme": None,
    }


COMPRESSED_TENSORS = Layout(
    _NAME,
    "weight_scale",
    ("weight_packed", "weight", "weight_scale", "weight_shape", _ZERO, _ORDER),
    _read,
    _write,
    _settings,
)
