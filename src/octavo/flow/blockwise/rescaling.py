"""Methods that scale inputs at work: scales are found, folded, and told to what was measured.

Tested in tests/flow/blockwise/test_rescaling.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from octavo.errors import InputError
from octavo.flow.blockwise.folds import Fold
from octavo.flow.blockwise.measuring_inputs import FloatLayer
from octavo.quantization.weights import Rescaling, Statistic, WeightMethod

Measured = Mapping[str, dict[Statistic, Any]]
"""Path of a layer -> what was measured of its input."""


def rescale(
    folds: Sequence[Fold],
    methods: Sequence[WeightMethod],
    layers: Mapping[str, FloatLayer],
    measured: Measured,
) -> dict[str, Tensor]:
    """Scale inputs by one method after the other, in the model itself.

    Args:
        folds: the inputs that can be scaled.
        methods: of which those are asked that scale.
        layers: of one block, which are rounded to nearest again where their weights change.
        measured: of their inputs; changed as they are.

    Returns:
        The scales, float ``[in]``, by the first layer of each input that has some.
    """
    scales: dict[str, Tensor] = {}
    for method in (method for method in methods if isinstance(method, Rescaling)):
        for fold in folds:
            found = _scales(method, fold, layers, measured)
            if found is not None:
                fold.apply(found)
                first = fold.paths[0]
                scales[first] = scales[first] * found if first in scales else found
                for path in fold.paths:
                    _tell(measured[path], 1 / found, path)
        for one in layers.values():
            one.renew()
    return scales


def rescaled_by(folds: Sequence[Fold], scales: Mapping[str, Tensor]) -> None:
    """Scale inputs by what `rescale` has returned for them once."""
    for fold in folds:
        if fold.paths[0] in scales:
            fold.apply(scales[fold.paths[0]].to(fold.made_by.device))


def _scales(
    method: Rescaling, fold: Fold, layers: Mapping[str, FloatLayer], measured: Measured
) -> Tensor | None:
    fitting = [layers[path] for path in fold.paths if method.fits(layers[path].layer)]
    states, statistic = list[Any](), None
    for one in fitting:
        statistic = method.statistic(one.layer)
        state = None if statistic is None else measured[one.layer.name].get(statistic)
        if state is not None and not any(state is known for known in states):
            states.append(state)
    if statistic is None or not states:
        return None
    seen = reduce(statistic.merge, states)
    return method.scales([one.layer for one in fitting], seen, fold.made_by)


def _tell(states: dict[Statistic, Any], factors: Tensor, path: str) -> None:
    """What was measured of an input becomes what it would be of the scaled one."""
    for statistic, state in states.items():
        scaled = getattr(statistic, "scaled", None)
        if scaled is None:
            raise InputError(
                f"{statistic} of the input of {path!r} was measured before it was scaled, and "
                "does not say what scaling makes of it: give the statistic a method "
                "scaled(state, factors), or use its method alone"
            )
        states[statistic] = scaled(state, factors.to(torch.float32))
