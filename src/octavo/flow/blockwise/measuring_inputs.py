"""Float layers of a model that has no graph, and what methods want to know of their inputs.

Tested in tests/flow/blockwise/test_rounding.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import CalibrationError
from octavo.graph.graph import Node
from octavo.model.nn import experts, quantized_form
from octavo.model.nn.float_layers import tensors_of
from octavo.model.nn.linear import Linear
from octavo.numerics.affine import dequantized, quantized
from octavo.quantization.qconfig import QConfig, QSpec
from octavo.quantization.weights import (
    Layer,
    Rounded,
    Statistic,
    WeightMethod,
    qparams_of_weight,
)


@dataclass
class FloatLayer:
    """A linear layer of the model, as methods see it, and as far as it is rounded.

    Attributes:
        module: the float one; one of its own, on memory of the model's, for an expert's.
        host: the module of the model that is called for it.
        spec: how its weight becomes integers.
        layer: it, for methods; its name is its path.
        now: its integers.
    """

    module: nn.Module
    host: nn.Module
    spec: QSpec
    layer: Layer
    now: Rounded

    @classmethod
    def of(
        cls, path: str, module: nn.Module, host: nn.Module, qconfig: QConfig, target: str
    ) -> FloatLayer:
        """A layer that is rounded to nearest.

        Args:
            path, module, host: see the attributes.
            qconfig, target: how it is quantized, and for what.
        """
        layer, spec = layer_of(path, module, qconfig, target)
        return cls(module, host, spec, layer, _nearest(layer.weight, spec))

    @property
    def is_expert(self) -> bool:
        return self.host is not self.module

    def statistics(self, methods: Iterable[WeightMethod]) -> dict[Statistic, str]:
        """What methods want to know of its input, and the name of the method."""
        fitting = [method for method in methods if method.fits(self.layer)]
        wanted = {method.statistic(self.layer): method.name for method in fitting}
        return {statistic: name for statistic, name in wanted.items() if statistic is not None}

    def check_measured(
        self, methods: Iterable[WeightMethod], seen: Mapping[Statistic, Any]
    ) -> None:
        """Raise where no data has reached the layer.

        Raises:
            CalibrationError: so it is.
        """
        for statistic, name in self.statistics(methods).items():
            if statistic not in seen:
                raise CalibrationError(
                    f"the data never calls {self.layer.name!r}, whose input {name!r} measures: "
                    "give data that does, or a rule that keeps the layer float (None)"
                )

    def round(self, methods: Iterable[WeightMethod], seen: Mapping[Statistic, Any]) -> None:
        """Let one method after the other round it.

        Args:
            methods: in the order in which they apply.
            seen: the states of their statistics.
        """
        for method in methods:
            if method.fits(self.layer):
                wanted = method.statistic(self.layer)
                state = None if wanted is None else seen[wanted]
                self.now = method.round(self.layer, self.now, state)

    def doubts(
        self, methods: Iterable[WeightMethod], seen: Mapping[Statistic, Any]
    ) -> Iterator[tuple[str, str]]:
        """Why methods round it worse than they could: their names, and a sentence each."""
        for method in methods:
            if method.fits(self.layer):
                wanted = method.statistic(self.layer)
                why = method.doubt(self.layer, None if wanted is None else seen[wanted])
                if why is not None:
                    yield method.name, why

    def renew(self) -> None:
        """Take the layer as it is now, rounded to nearest."""
        weight, bias = _floats(self.module)
        self.layer = replace(self.layer, weight=weight, bias=bias)
        self.now = _nearest(weight, self.spec)

    def write_back(self) -> None:
        """Give the float layer what its integers stand for."""
        with torch.no_grad():
            tensors_of(self.module)["weight"].copy_(
                dequantized(self.now.integers, self.now.qparams)
            )


def float_layers(
    model: nn.Module, qconfigs: Mapping[str, QConfig], target: str
) -> Iterator[FloatLayer]:
    """The linear layers of a model that shall have integers, those of stacked experts too.

    Args:
        model: in float.
        qconfigs: path of each layer that shall have integers -> how.
        target: name of the target.
    """
    for path, module in model.named_modules():
        form = quantized_form(module) if path in qconfigs else None
        if form is Linear:
            yield FloatLayer.of(path, module, module, qconfigs[path], target)
        elif form is experts.Experts:
            for name, linears in experts.linears_of(module).items():
                for index, linear in enumerate(linears):
                    at = f"{path}.{name}.{index}"
                    yield FloatLayer.of(at, linear, module, qconfigs[path], target)


def _floats(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    tensors = tensors_of(module)
    weight, bias = tensors["weight"].detach().float(), tensors.get("bias")
    return weight, None if bias is None else bias.detach().float()


def _nearest(weight: Tensor, spec: QSpec) -> Rounded:
    qparams = qparams_of_weight(weight, spec)
    return Rounded(quantized(weight, qparams), qparams)


def layer_of(path: str, module: nn.Module, qconfig: QConfig, target: str) -> tuple[Layer, QSpec]:
    """A linear layer as methods see it, and how its weight becomes integers.

    Its weight may be on the meta device.
    """
    spec, activation = Linear.specs(module, qconfig, target)
    weight, bias = _floats(module)
    layer = Layer(
        node=Node(path, "aten.linear.default"),
        runs="weight_only" if activation is None else "dynamic",
        weight_name=f"{path}.weight",
        weight=weight,
        scheme=spec.scheme,
        input=path,
        bias=bias,
        takes_bias=False,  # modules keep theirs
    )
    return layer, spec


class Measuring:
    """Measures the inputs of layers while it is entered; what several read is measured once."""

    def __init__(self, layers: Mapping[str, FloatLayer], methods: Sequence[WeightMethod]) -> None:
        self._wanted = {path: list(one.statistics(methods)) for path, one in layers.items()}
        self._states: dict[str, dict[Statistic, Any]] = {path: {} for path in layers}
        self._hosts: dict[nn.Module, list[str]] = {}  # and what it is called for
        for path, one in layers.items():
            if self._wanted[path]:
                self._hosts.setdefault(one.host, []).append(path)
        self._last: tuple[Tensor, int, dict[Statistic, tuple[Any, Any]]] | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> Measuring:
        for host, paths in self._hosts.items():
            is_stack = quantized_form(host) is experts.Experts
            hook = self._of_experts(paths) if is_stack else self._of_linear(paths[0])
            self._handles.append(host.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = None

    def of(self, path: str) -> dict[Statistic, Any]:
        """What was measured of the input of a layer; nothing where it was not called."""
        return self._states[path]

    def _of_linear(self, path: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._look(path, next(iter((*args, *kwargs.values()))))

        return look

    def _of_experts(self, paths: Sequence[str]) -> Callable[..., None]:
        known = {tuple(path.rsplit(".", 2)[1:]): path for path in paths}

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for (name, expert), x in experts.inputs_of(module, *args, **kwargs):
                if len(x) and (name, str(expert)) in known:
                    self._look(known[name, str(expert)], x)

        return look

    def _look(self, path: str, x: Tensor) -> None:
        states, known = self._states[path], dict[Statistic, tuple[Any, Any]]()
        version = 0 if x.is_inference() else x._version
        if self._last is not None and self._last[0] is x and self._last[1] == version:
            known = self._last[2]
        else:
            _check_finite(path, x)
        for statistic in self._wanted[path]:
            before, after = known.get(statistic, (None, None))
            old = states.get(statistic)
            if after is None or before is not old:
                after = statistic.update(old, x.detach())
            states[statistic] = after
            known[statistic] = (old, after)
        self._last = (x, version, known)


def _check_finite(path: str, x: Tensor) -> None:
    # A sum is quick, and may overflow where all is fine.
    if not math.isfinite(x.sum(dtype=torch.float32)) and not bool(torch.isfinite(x).all()):
        raise CalibrationError(
            f"an input of {path!r} has a NaN or an infinity in it: clean the data, or keep the "
            "layer float by a rule (None)"
        )
