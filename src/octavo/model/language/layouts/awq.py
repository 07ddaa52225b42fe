"""The layout of AutoAWQ's checkpoints (``version`` ``gemm``).

``qweight`` int32 ``[in, out / 8]`` and ``qzeros`` int32 ``[groups, out / 8]``, packed along the
outputs, of each eight the even ones in the lower half of a word; ``scales`` float16 ``[groups,
out]``.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.model.language.layouts.layout import Layout, Settings, Sizes, one_of
from octavo.model.language.layouts.linear_integers import LinearIntegers
from octavo.model.language.layouts.packing import packed, unpacked

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _read(sizes: Sizes, tensors: Mapping[str, Tensor], settings: Settings) -> LinearIntegers:
    out, columns = sizes
    version = str(settings.get("version", settings.get("format", "gemm"))).lower()
    if version != "gemm" or settings.get("bits", 4) != 4:
        raise ValueError(f"it is of version {version!r}: Octavo reads 'gemm' of 4 bits")
    integers = unpacked(tensors["qweight"], 4, axis=1, order=_ORDER)
    zeros = unpacked(tensors["qzeros"], 4, axis=1, order=_ORDER).to(torch.int32)
    scales = tensors["scales"]
    if integers.shape != (columns, out) or not zeros.shape == scales.shape == (len(scales), out):
        raise ValueError(f"its qweight is {list(integers.shape)} for a layer of {columns} to {out}")
    layer = LinearIntegers(
        4,
        integers.t().contiguous(),
        scales.t().to(torch.float32).contiguous(),
        zeros.t().contiguous(),
    )
    return layer.in_neighbours([settings.get("group_size")])


def _write(layer: LinearIntegers) -> dict[str, Tensor]:
    out, columns = layer.integers.shape
    if layer.bits != 4:
        raise ValueError(f"a layer has {layer.bits} bits, and this layout 4")
    if out % len(_ORDER):
        raise ValueError(f"a layer of {columns} to {out} does not fill words of {len(_ORDER)}")
    return {
        "qweight": packed(layer.integers.t(), 4, axis=1, order=_ORDER),
        "qzeros": packed(layer.zero_point.t(), 4, axis=1, order=_ORDER),
        "scales": layer.scale.t().to(torch.float16).contiguous(),
    }


def _settings(layers: Mapping[str, LinearIntegers], left: Sequence[str]) -> dict[str, Any]:
    by_channel = all(layer.scale.shape[1] == 1 for layer in layers.values())
    return {
        "quant_method": "awq",
        "bits": one_of(layers, "bits"),
        "group_size": -1 if by_channel else one_of(layers, "group_size"),
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": list(left),
    }


AWQ = Layout("awq", "qweight", ("qweight", "qzeros", "scales"), _read, _write, _settings)
