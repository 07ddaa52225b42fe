"""`Dequantizing`: a module that runs as the float layer does, of weights dequantized at each call.

Tested in tests/model/nn/test_recurrent.py.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from octavo.model.nn.quantized_module import QuantizedModule
from octavo.numerics import octavo_operators


class Dequantizing(QuantizedModule):
    """A layer whose weights are floats for as long as a call takes."""

    def rounded(self, x: Tensor) -> Tensor:
        """An input as the layer reads it: rounded by its own range if it is dynamic.

        What has a NaN or an infinity, along the first axis, stays as it is and stretches no range.
        """
        scheme = self.activation
        if scheme is None or not x.numel() or x.is_meta:
            return x
        rounding = (scheme.qmin, scheme.qmax, scheme.symmetric, scheme.per_token)
        if math.isfinite(x.sum()):
            return octavo_operators.fake_quantize_dynamic(x, *rounding)
        fine = x.isfinite().flatten(1).all(1).reshape(-1, *[1] * (x.dim() - 1))
        emptied = torch.where(fine, x, 0.0)
        return torch.where(fine, octavo_operators.fake_quantize_dynamic(emptied, *rounding), x)

    def float_layer(self) -> nn.Module:
        """The float layer, of the rounded weights; another one at each call, since threads may
        call at once.
        """
        layer: Any = object.__new__(self.floats)
        weights = self.dequantized()
        layer.__dict__.update(self._without_values.__dict__, _parameters=weights)
        if isinstance(layer, nn.RNNBase):
            names = layer._flat_weights_names
            layer.__dict__.update(
                _flat_weights=[weights[name] for name in names],
                _flat_weight_refs=[None] * len(names),
            )
        return layer  # type: ignore[no-any-return]

    @cached_property
    def _without_values(self) -> nn.Module:
        return self.empty(self.description.settings)
