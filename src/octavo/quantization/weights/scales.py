"""The scales and zero points of weights: their ranges are in the weights themselves.

Tested in tests/quantization/test_calibrate.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.numerics.affine import QParams, blocks, qparams_of_range
from octavo.quantization.qconfig import QSpec

_SLAB = 4096  # channels that are observed at a time, since an observer keeps much of each


def qparams_of_weight(weight: Tensor, spec: QSpec) -> QParams:
    """The scale and zero point of a weight, for each channel or group where its scheme says so.

    Args:
        weight: float, in the shape that its layer has.
        spec: its scheme and the observer that finds its ranges.

    Raises:
        CalibrationError: a range is not finite.
    """
    scheme, observer = spec.scheme, spec.observer
    assert observer is not None
    rows, axis = blocks(weight.detach(), scheme)
    if axis is None:
        bounds = observer.bounds(observer.update(None, rows, None), scheme)
        low, high = bounds.low, bounds.high
    else:
        ends = []
        for slab in rows.movedim(axis, 0).split(_SLAB):
            bounds = observer.bounds(observer.update(None, slab, 0), scheme)
            ends.append(torch.stack([bounds.low, bounds.high]).reshape(2, -1).expand(2, len(slab)))
        low, high = torch.cat(ends, 1)
    qparams = qparams_of_range(low, high, scheme)
    if scheme.group_size is None:
        return qparams
    shape = (weight.shape[0], -1)
    return QParams(qparams.scale.reshape(shape), qparams.zero_point.reshape(shape), scheme)
