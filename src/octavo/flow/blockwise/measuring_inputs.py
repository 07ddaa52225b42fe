"""Float layers of a model that has no graph, and what methods want to know of their inputs.

Tested in tests/flow/blockwise/test_rounding.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import CalibrationError
from octavo.model.nn.float_layers import tensors_of
from octavo.numerics.affine import dequantized
from octavo.quantization.weights import Layer, Rounded, Statistic, WeightMethod


@dataclass
class FloatLayer:
    """A linear layer of the model, as methods see it, and as far as it is rounded.

    Attributes:
        module: the float one.
        layer: it, for methods; its name is its path.
        now: its integers.
    """

    module: nn.Module
    layer: Layer
    now: Rounded

    def statistics(self, methods: Iterable[WeightMethod]) -> dict[Statistic, str]:
        """What methods want to know of its input, and the name of the method."""
        fitting = [method for method in methods if method.fits(self.layer)]
        wanted = {method.statistic(self.layer): method.name for method in fitting}
        return {statistic: name for statistic, name in wanted.items() if statistic is not None}

    def round(self, methods: Iterable[WeightMethod], seen: Mapping[Statistic, Any]) -> None:
        """Let one method after the other round it.

        Args:
            methods: in the order in which they apply.
            seen: the states of their statistics.

        Raises:
            CalibrationError: one is missing, since no data has reached the layer.
        """
        for statistic, name in self.statistics(methods).items():
            if statistic not in seen:
                raise CalibrationError(
                    f"the data never calls {self.layer.name!r}, whose input {name!r} measures: "
                    "give data that does, or a rule that keeps the layer float (None)"
                )
        for method in methods:
            if method.fits(self.layer):
                wanted = method.statistic(self.layer)
                state = None if wanted is None else seen[wanted]
                self.now = method.round(self.layer, self.now, state)

    def write_back(self) -> None:
        """Give the float layer what its integers stand for."""
        with torch.no_grad():
            tensors_of(self.module)["weight"].copy_(
                dequantized(self.now.integers, self.now.qparams)
            )


class Measuring:
    """Measures the inputs of layers while it is entered; what several read is measured once."""

    def __init__(self, layers: Mapping[str, FloatLayer], methods: Sequence[WeightMethod]) -> None:
        self._modules = {path: one.module for path, one in layers.items()}
        self._wanted = {path: list(one.statistics(methods)) for path, one in layers.items()}
        self._states: dict[str, dict[Statistic, Any]] = {path: {} for path in layers}
        self._last: tuple[Tensor, int, dict[Statistic, tuple[Any, Any]]] | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> Measuring:
        for path, module in self._modules.items():
            if self._wanted[path]:
                hook = self._hook(path)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def of(self, path: str) -> Mapping[Statistic, Any]:
        """What was measured of the input of a layer; nothing where it was not called."""
        return self._states[path]

    def _hook(self, path: str) -> Callable[..., None]:
        states, wanted = self._states[path], self._wanted[path]

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, known = next(iter((*args, *kwargs.values()))), dict[Statistic, tuple[Any, Any]]()
            version = 0 if x.is_inference() else x._version
            if self._last is not None and self._last[0] is x and self._last[1] == version:
                known = self._last[2]
            else:
                _check_finite(path, x)
            for statistic in wanted:
                before, after = known.get(statistic, (None, None))
                old = states.get(statistic)
                if after is None or before is not old:
                    after = statistic.update(old, x.detach())
                states[statistic] = after
                known[statistic] = (old, after)
            self._last = (x, version, known)

        return look


def _check_finite(path: str, x: Tensor) -> None:
    # A sum is quick, and may overflow where all is fine.
    if not math.isfinite(x.sum(dtype=torch.float32)) and not bool(torch.isfinite(x).all()):
        raise CalibrationError(
            f"an input of {path!r} has a NaN or an infinity in it: clean the data, or keep the "
            "layer float by a rule (None)"
        )
