"""torchvision's detectors beside a build of torch that torchvision's binary was not made for.

`torchvision_shim` lets torchvision be imported; a detector also calls two operators of the C++
part. Non-maximum suppression is written here by torch's operators; for RoI align torchvision has
such a form itself, which is taken as it is, without the compiler that torchvision would run on it.
Where the C++ part loads, this changes nothing.
"""

from __future__ import annotations

import sys

import torch
import torchvision_shim
from torch import Tensor
from torchvision import extension, ops


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes to keep, best score first: each overlaps no better one by more.

    Args:
        boxes: float ``[N, 4]``, as x1, y1, x2, y2.
        scores: float ``[N]``.
        iou_threshold: two boxes with a larger intersection over union are one object.
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = ops.box_iou(boxes[order], boxes[order]) > iou_threshold
    kept: list[int] = []
    gone = torch.zeros(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if not gone[index]:
            kept.append(index)
            gone |= overlaps[index]
    return order[kept]


if not extension._has_ops():
    torchvision_shim._DECLARED.impl("nms", nms, "CPU")
    extension._has_ops = lambda: True  # nms asks; RoI align has taken the old answer with it
    _roi_align = sys.modules["torchvision.ops.roi_align"]
    _roi_align._roi_align = _roi_align._roi_align.__wrapped__
