"""A prepared model: the user's module, observed or trained on the way to integers.

Eager code gives no example input, so the model is captured at its first call.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from octavo.compat.quantization.conversion import convert_into
from octavo.compat.quantization.dynamic import swap_layers
from octavo.compat.quantization.parts import as_written, close, refuse_hooks
from octavo.compat.quantization.rules import Rules, read_by_stubs
from octavo.compat.quantization.takeover import Changed, as_float, become
from octavo.errors import CalibrationError, NothingQuantized, OctavoWarning
from octavo.graph.batches import Signature
from octavo.graph.calls import flatten_call
from octavo.graph.capture.capture import traced
from octavo.graph.graph import Graph
from octavo.graph.passes import canonical
from octavo.graph.weight_layouts import groups_of
from octavo.numerics.affine import QParams
from octavo.quantization.calibrate import Calibrated, Calibration
from octavo.quantization.convert import quantize_graph
from octavo.quantization.plan import Plan, plan
from octavo.quantization.qconfig import QConfigMapping
from octavo.quantization.weights import (
    Average,
    BiasCorrection,
    Measured,
    qparams_of_weight,
    quantized_layers,
)

if TYPE_CHECKING:
    from typing import Self  # which Python 3.10 has not


class Prepared(Changed):
    """Calls run the float model, and observe."""

    _octavo: Preparation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._octavo.call(as_float(self), args, kwargs)


@dataclass
class Knowledge:
    """What a prepared model knows, whatever it is prepared for.

    Attributes:
        signature: the names of the model's arguments.
        rules: what is quantized.
        captured: whether the model was captured.
        stubs: tensor -> path of the QuantStub that reads it.
    """

    signature: Signature
    rules: Rules
    captured: bool = False
    stubs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, rules: Rules) -> Self:
        """For a model, which shall go on as a prepared one."""
        return cls(Signature.of(model), rules)


@dataclass
class Preparation(Knowledge):
    """What a model prepared for calibration knows.

    Attributes:
        calibration: what was observed; ``None`` before the first call, and if nothing of the model
            is to be quantized.
        sums: of the weights that the model was captured with.
    """

    calibration: Calibration | None = None
    sums: Mapping[str, str] = field(default_factory=dict)

    @property
    def plan(self) -> Plan | None:
        """``None`` where nothing is quantized."""
        return None if self.calibration is None else self.calibration.plan

    @property
    def needs_graph(self) -> bool:
        """Whether something is static; what is not changes layer by layer."""
        return "static" in self.rules.modes or not self.rules.modes

    def capture(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan the float model.

        Raises:
            CaptureError: the model cannot be exported.
            PlanError: a rule does not fit.
        """
        if not self.needs_graph:
            return
        captured = planned(model, self.rules, args, kwargs)
        self.captured, self.sums = True, _sums(model)
        close(model, hooks=False)
        if captured is not None:
            self.calibration, self.stubs = (
                Calibration(captured.graph, captured.plan),
                captured.stubs,
            )

    def call(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the float model returns, observed."""
        if self.needs_graph:
            _refuse_training_norms(model)
        seen = self.calibration is not None and self.calibration.batches
        if not self.captured or (not seen and self.sums != _sums(model)):
            self.capture(model, args, kwargs)
        if self.calibration is not None:
            self.calibration.observe(flatten_call(self.calibration.graph, args, kwargs))
        return model.forward(*args, **kwargs)

    def convert(self, root: nn.Module) -> nn.Module:
        """Make ``root``, the prepared module or a float copy of it, a converted one, in place."""
        if not self.needs_graph:
            return swap_layers(become(root, None), self.rules.of_module, self.rules.target)
        if not self.captured:
            refuse_hooks(root)
            close(root, hooks=True)
            return become(root, Awaiting, Waiting(self))
        if self.calibration is None:
            return become(root, None)
        if self.sums != _sums(root):
            raise CalibrationError(
                "weights have changed since the model was captured: load them before it is "
                "prepared, or at the latest before its first call"
            )
        seen = self.calibration
        calibrated = seen.result() if seen.batches else unknown(seen.graph, seen.plan)
        quantized = quantize_graph(
            seen.graph, seen.plan, calibrated.qparams, [BiasCorrection()], calibrated.statistics
        )
        return convert_into(root, quantized, seen.plan, self.signature, self.stubs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Preparation:
        if self.calibration is None:
            return replace(self)
        own = Calibration(self.calibration.graph, self.calibration.plan)
        own.merge(self.calibration)
        return replace(self, calibration=own)


def _sums(model: nn.Module) -> dict[str, str]:
    """Parameter or running statistic -> its sum: copies have the same, other values another."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tensors = {
        **dict(model.named_parameters()),
        **{f"{i}": m.running_mean for i, m in enumerate(norms)},
    }
    return {
        name: str(t.detach().double().sum().item()) for name, t in tensors.items() if t is not None
    }


def _refuse_training_norms(model: nn.Module) -> None:
    """Raise where running statistics would change under the calibration."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise CalibrationError(
                f"the batch norm {path!r} is in training mode, so that it would change while the "
                "model is calibrated: call model.eval() first"
            )


@dataclass(frozen=True)
class Planned:
    """A captured model.

    Attributes:
        graph: canonical, in float.
        plan: of that graph.
        mapping: what the plan was made of.
        stubs: tensor -> path of the QuantStub that reads it.
    """

    graph: Graph
    plan: Plan
    mapping: QConfigMapping
    stubs: Mapping[str, str]


def planned(
    model: nn.Module, rules: Rules, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Planned | None:
    """Capture and plan a model; ``None``, with a warning, where nothing is quantized."""
    with as_written(model):
        raw = traced(model, args, kwargs)
    graph = canonical(raw)
    mapping = rules.of_graph(raw, graph, model)
    try:
        made = plan(graph, mapping, rules.target)
        return Planned(graph, made, mapping, read_by_stubs(raw, model))
    except NothingQuantized as nothing:
        warnings.warn(f"the model stays float: {nothing}", OctavoWarning, stacklevel=2)
        return None


def unknown(graph: Graph, plan: Plan) -> Calibrated:
    """What calibration would find, but for the numbers: scales are NaN until they are loaded."""
    qparams = {}
    for name, tensor in plan.quantized.items():
        assert tensor.spec is not None
        if tensor.kind == "weight":
            qparams[name] = qparams_of_weight(graph.constants[name], tensor.spec)
        else:
            zero = torch.tensor(0, dtype=torch.int32)
            qparams[name] = QParams(torch.tensor(float("nan")), zero, tensor.spec.scheme)
    method, zeros = BiasCorrection(), dict[Measured, Average]()
    for layer in filter(method.fits, quantized_layers(graph, plan)):
        weight = layer.weight
        transposed = layer.layout.output_axis == 1
        inputs = weight.shape[0] if transposed else weight.shape[1] * groups_of(layer.node)
        zeros[layer.input or "", method.statistic(layer)] = Average(torch.zeros(inputs), 1)
    return Calibrated(qparams, {}, 0, statistics=zeros)


@dataclass
class Waiting:
    """A conversion that waits for its first call: only a call shows the graph.

    Attributes:
        preparation: of the float model, or of the training.
        state: the state dict that was loaded meanwhile.
    """

    preparation: Any
    state: dict[str, Tensor] = field(default_factory=dict)


class Awaiting(Changed):
    """Converted without having been called: the first call builds it, of the loaded state dict."""

    _octavo: Waiting

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Keep a converted model's tensors for the first call."""
        self._octavo.state = dict(state_dict)
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        waiting = self._octavo
        if not waiting.state:
            raise CalibrationError(
                "the model was converted without calibration: call the prepared model on "
                "calibration data before convert, or load the state dict of a converted model"
            )
        waiting.preparation.capture(as_float(self), args, kwargs)
        waiting.preparation.convert(self)
        self.load_state_dict(waiting.state)
        return self(*args, **kwargs)
