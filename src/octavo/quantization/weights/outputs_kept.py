"""Methods that round weights so that the layer's output changes least.

With ``H = E[x x^T]`` the squared error of the output is ``tr(E H E^T)`` for an error ``E`` of the
weight. A convolution is a linear layer on its windows, one for each group of its channels.

Tested in tests/quantization/weights/test_gptq.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.errors import CalibrationError
from octavo.numerics.affine import QParams
from octavo.quantization.weights.bias_correction import Average
from octavo.quantization.weights.layers import Layer, Rounded
from octavo.quantization.weights.method import WeightMethod
from octavo.quantization.weights.moments import SecondMoments
from octavo.quantization.weights.patches import PatchMoments


class KeepsOutputs(WeightMethod):
    """A weight method that needs ``E[x x^T]``, for linear layers and for static convolutions in
    two dimensions. It keeps the scales of the methods before it.

    Attributes:
        most_inputs: layers that read more inputs for an output are left as they are, since
            ``E[x x^T]`` has the square of their number, of each layer of a graph at once: 10 GB
            behind 50,000 inputs. ``None``: all are rounded.
    """

    most_inputs: int | None

    def integers(self, weight: Tensor, moments: Tensor, now: Rounded) -> Tensor:
        """The integers of a weight, ``[rows, columns]``.

        Args:
            weight: float ``[rows, columns]``.
            moments: ``E[x x^T]``, float ``[columns, columns]``; or ``[groups, columns, columns]``,
                of so many groups of neighbouring rows, each of which has inputs of its own.
            now: what the methods before have made.
        """
        raise NotImplementedError

    def fits(self, layer: Layer) -> bool:
        if self.most_inputs is not None and layer.weight[0].numel() > self.most_inputs:
            return False
        if layer.node.short_op == "conv2d":
            return layer.runs == "int8"
        return layer.node.short_op == "linear"

    def statistic(self, layer: Layer) -> SecondMoments | PatchMoments:
        return PatchMoments.of(layer) if layer.node.short_op == "conv2d" else SecondMoments()

    def doubt(self, layer: Layer, seen: Average) -> str | None:
        if seen.values >= layer.weight.shape[1]:
            return None
        return (
            f"{seen.values} rows of data are fewer than the {layer.weight.shape[1]} inputs, so "
            "that the integers suit these rows more than others: give more data"
        )

    def round(self, layer: Layer, now: Rounded, seen: Average) -> Rounded:
        if not bool(torch.isfinite(seen.mean).all()):
            raise CalibrationError(
                f"{layer.name!r} reads values whose squares float32 does not hold, which "
                f"{type(self).__name__} needs: scale the data, or leave it out of weights="
            )
        windows = layer.weight.flatten(1)
        integers = self.integers(windows, seen.mean, now)
        shaped = integers.reshape(layer.weight.shape)
        return replace(now, integers=shaped.to(now.integers.dtype))


def by_column(values: Tensor, qparams: QParams, rows: int, columns: int) -> Tensor:
    """A scale or zero point for each value of a weight, float32 ``[rows, columns]``."""
    own = qparams.of_rank(2)[0 if values is qparams.scale else 1]
    repeats = columns // own.shape[1] if own.shape[1] > 1 else columns
    return own.to(torch.float32).repeat_interleave(repeats, 1).expand(rows, columns)
