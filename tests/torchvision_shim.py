"""Lets torchvision be imported beside a build of torch that its binary was not made for.

The wheels of torchvision on the package registry are made for torch's CUDA build. Beside the CPU
build their C++ part does not load, and ``import torchvision`` then fails, since it registers shapes
for two operators that the C++ part would have declared. The models need neither, so it is enough to
declare the two. Import this module before torchvision, and before what imports that (timm,
transformers). Where the C++ part loads, or torchvision is missing, it changes nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

_DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as its declarations


def _declare_missing_operators() -> None:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for binary in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(binary))
        except OSError:
            continue
        return
    for name in ("nms", "qnms"):
        _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declare_missing_operators()
