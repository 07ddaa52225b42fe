"""Scales and zero points that reach over all of a weight."""

from __future__ import annotations

from torch import Tensor

from octavo.numerics.affine import QParams, unchecked_qparams
from octavo.numerics.scheme import Scheme


def of_ranges(weight: Tensor, scheme: Scheme) -> QParams:
    """Those of the lowest and the highest of each group, or of each row ``[rows, columns]``."""
    size = scheme.group_size or weight.shape[1]
    rows = weight.reshape(-1, size)
    qparams = unchecked_qparams(rows.amin(1), rows.amax(1), scheme)
    shape = (len(weight), -1) if scheme.group_size else (len(weight),)
    return QParams(qparams.scale.reshape(shape), qparams.zero_point.reshape(shape), scheme)
