"""The layout of GPTQ's and AutoGPTQ's checkpoints, also called v1, and v2.

``qweight`` int32 ``[in * bits / 32, out]``, packed along the inputs; ``qzeros`` int32 ``[groups,
out * bits / 32]``, packed along the outputs, each less by one in v1; ``scales`` float16 ``[groups,
out]``; ``g_idx`` int32 ``[in]``, the group of each input.

Tested in tests/model/language/test_checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.model.language.layouts.layout import Layout, Settings, Sizes, one_of
from octavo.model.language.layouts.linear_integers import BITS, LinearIntegers
from octavo.model.language.layouts.packing import packed, unpacked


def _read(sizes: Sizes, tensors: Mapping[str, Tensor], settings: Settings) -> LinearIntegers:
    out, columns = sizes
    bits = 32 * tensors["qweight"].shape[0] // columns
    if bits not in BITS:
        raise ValueError(f"it has {bits} bits: Octavo reads 4 and 8")
    scales = tensors["scales"]
    integers = unpacked(tensors["qweight"], bits, axis=0)
    zeros = unpacked(tensors["qzeros"], bits, axis=1).to(torch.int32)
    if settings.get("checkpoint_format", settings.get("format", "gptq")) != "gptq_v2":
        zeros = (zeros + 1) & (2**bits - 1)
    if integers.shape != (columns, out) or not zeros.shape == scales.shape == (len(scales), out):
        raise ValueError(f"its qweight is {list(integers.shape)} for a layer of {columns} to {out}")
    layer = LinearIntegers(
        bits,
        integers.t().contiguous(),
        scales.t().to(torch.float32).contiguous(),
        zeros.t().contiguous(),
    )
    if "g_idx" in tensors:
        return layer.in_groups(tensors["g_idx"])
    return layer.in_neighbours([settings.get("group_size")])


def _write(layer: LinearIntegers) -> dict[str, Tensor]:
    out, columns = layer.integers.shape
    count = 32 // layer.bits
    if out % count or columns % count:
        raise ValueError(f"a layer of {columns} to {out} does not fill words of {count} integers")
    zeros = layer.zero_point.t() - 1
    if bool((zeros < 0).any()):
        raise ValueError("a zero point is 0, and this layout keeps it less by one")
    groups = torch.arange(columns, dtype=torch.int32) // layer.group_size
    return {
        "qweight": packed(layer.integers.t(), layer.bits, axis=0),
        "qzeros": packed(zeros, layer.bits, axis=1),
        "scales": layer.scale.t().to(torch.float16).contiguous(),
        "g_idx": groups,
    }


def _settings(layers: Mapping[str, LinearIntegers], left: Sequence[str]) -> dict[str, Any]:
    by_channel = all(layer.scale.shape[1] == 1 for layer in layers.values())
    return {
        "quant_method": "gptq",
        "bits": one_of(layers, "bits"),
        "group_size": -1 if by_channel else one_of(layers, "group_size"),
        "desc_act": False,
        "sym": all(layer.symmetric for layer in layers.values()),
        "lm_head": "lm_head" in layers,
        "checkpoint_format": "gptq",
    }


GPTQ = Layout("gptq", "qweight", ("qweight", "qzeros", "scales", "g_idx"), _read, _write, _settings)
