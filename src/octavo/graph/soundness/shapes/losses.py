"""Shapes of losses: of one value, or of one for each pair that is compared.

All of it is tested in tests/graph/soundness/shapes/test_shapes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.graph.soundness.shapes.common import Rule, broadcast, made, on_sample, require

Values = Mapping[str, Any]

_NONE, _MEAN, _SUM = 0, 1, 2  # what torch calls a reduction


def _whole_or(shape: tuple[int, ...], values: Values) -> tuple[int, ...]:
    """The shape of a loss that is ``shape`` where it is not reduced."""
    require(values["reduction"] in (_NONE, _MEAN, _SUM), f"the reduction {values['reduction']}")
    return shape if values["reduction"] == _NONE else ()


def _of_pairs(operator: Any, values: Values) -> Tensor:
    shape = broadcast(values["self"].shape, values["target"].shape)
    return made(_whole_or(shape, values), on_sample(operator, values).dtype)


def _of_logits(operator: Any, values: Values) -> Tensor:
    shape = tuple(values["self"].shape)
    others = [values[name] for name in ("target", "weight", "pos_weight")]
    of_others = (other.shape for other in others if other is not None)
    require(broadcast(shape, *of_others) == shape, "what is compared does not fit")
    return made(_whole_or(shape, values), on_sample(operator, values).dtype)


def _of_classes(operator: Any, values: Values) -> Tensor:
    """Targets are class indices, or a probability for each class."""
    x, target, weight = values["self"], values["target"], values["weight"]
    require(x.dim() > 0 and x.is_floating_point(), f"scores that are {x.dtype}")
    axis = min(1, x.dim() - 1)
    one_each = (*x.shape[:axis], *x.shape[axis + 1 :])
    if target.dtype == x.dtype:
        require(target.shape == x.shape, "probabilities that do not fit the scores")
    else:
        require(target.dtype == torch.int64, f"class indices that are {target.dtype}")
        require(tuple(target.shape) == one_each, "class indices that do not fit the scores")
    if weight is not None:
        fits = tuple(weight.shape) == (x.shape[axis],) and weight.dtype == x.dtype
        require(fits, "not one weight for each class")
    return made(_whole_or(one_each, values), x.dtype)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"), _of_pairs),
    "binary_cross_entropy_with_logits": _of_logits,
    "cross_entropy_loss": _of_classes,
}
