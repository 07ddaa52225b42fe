"""A model prepared for training: the user's module, with `octavo.QATModel` for its forward.

The two share parameters and buffers, so that an optimizer trains the model whether it was made
before the first call, which captures it, or after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from octavo.compat.quantization.conversion import convert_into
from octavo.compat.quantization.holding import hold
from octavo.compat.quantization.parts import as_written, close, refuse_hooks
from octavo.compat.quantization.preparation import Awaiting, Knowledge, Waiting, planned, unknown
from octavo.compat.quantization.rules import Rules
from octavo.compat.quantization.takeover import Changed, as_float, become
from octavo.errors import TrainingError
from octavo.graph.capture.capture import bind_arguments
from octavo.qat import ObservedFakeQuantize, QATModel, prepare_qat
from octavo.quantization.convert import quantize_graph
from octavo.quantization.plan import Plan

if TYPE_CHECKING:
    from typing import Self  # which Python 3.10 has not


class Trained(Changed):
    """Calls run the float model with the rounding that it will meet."""

    _octavo: Training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._octavo.call(as_float(self), args, kwargs)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Round, or compute in float while ranges are being observed."""
        self._octavo.set("rounding", enabled)

    def enable_observer(self, enabled: bool = True) -> None:
        """Let ranges follow the training, or keep them."""
        self._octavo.set("observing", enabled)

    def freeze_bn_stats(self, frozen: bool = True) -> None:
        """Train with the running statistics as they are."""
        self._octavo.set("norms_frozen", frozen)

    @property
    def octavo_model(self) -> QATModel | None:
        """The model as Octavo trains it; ``None`` before the first call."""
        return self._octavo.qat

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._octavo.move(fn, self)
        return self


@dataclass
class Training(Knowledge):
    """What a model prepared for training knows.

    Attributes:
        qat: the training model; ``None`` before the first call, and if nothing of the model is to
            be quantized.
        rounding, observing, norms_frozen: the switches.
    """

    qat: QATModel | None = None
    rounding: bool = True
    observing: bool = True
    norms_frozen: bool = False

    @classmethod
    def of(cls, model: nn.Module, rules: Rules) -> Self:
        """For a model, which shall go on as a prepared one.

        Raises:
            OctavoError: a part of it has a hook, which would not be called any more.
        """
        refuse_hooks(model)
        close(model, hooks=True)
        return super().of(model, rules)

    @property
    def plan(self) -> Plan | None:
        """``None`` where nothing is quantized."""
        return None if self.qat is None else self.qat.plan

    def set(self, switch: str, value: bool) -> None:
        """Turn a switch, now or at the first call."""
        setattr(self, switch, value)
        if self.qat is not None:
            self.qat.observe(self.observing).freeze_batch_norms(self.norms_frozen)

    def capture(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Capture and plan the float model, and share its parameters.

        Raises:
            CaptureError: the model cannot be exported.
            PlanError: a rule does not fit.
            TrainingError: a parameter cannot be shared.
        """
        found = planned(model, self.rules, args, kwargs)
        self.captured = True
        if found is None:
            return
        self.stubs = found.stubs
        example = args if not kwargs else bind_arguments(model, args, kwargs)
        with as_written(model):
            self.qat = prepare_qat(
                model, example, found.mapping, target=self.rules.target, mode="static"
            )
        share(self.qat, model)
        self.set("observing", self.observing)

    def call(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the float model returns, of rounded values once ranges are known."""
        if not self.captured:
            self.capture(model, args, kwargs)
        if self.qat is None:
            return model.forward(*args, **kwargs)
        self.qat.train(model.training)
        if model.training:
            self.qat.freeze_batch_norms(self.norms_frozen or _all_norms_evaluate(model))
        self.qat.fake_quantize(self.rounding and (model.training or self.has_ranges))
        return self.qat(*args, **kwargs)

    @property
    def has_ranges(self) -> bool:
        """Whether every activation has been seen in training."""
        assert self.qat is not None
        modules = [m for m in self.qat.modules() if isinstance(m, ObservedFakeQuantize)]
        return all(module.seen for module in modules)

    def convert(self, root: nn.Module) -> nn.Module:
        """Make ``root``, the prepared module or a float copy of it, a converted one, in place."""
        if not self.captured:
            return become(root, Awaiting, Waiting(self))
        if self.qat is None:
            return become(root, None)
        qat = self.qat.eval()
        graph = qat.deployed()
        qparams = qat.qparams() if self.has_ranges else unknown(graph, qat.plan).qparams
        return convert_into(
            root, quantize_graph(graph, qat.plan, qparams), qat.plan, self.signature, self.stubs
        )

    def move(self, fn: Callable[[Tensor], Tensor], root: nn.Module) -> None:
        """Follow the module to another device."""
        if self.qat is not None:
            self.qat._apply(fn)
            share(self.qat, root)


def _all_norms_evaluate(model: nn.Module) -> bool:
    """Whether the batch norms of a model in training were set to evaluation, which freezes them.

    Raises:
        TrainingError: only some of them were, or a dropout was.
    """
    norms = {
        p: m for p, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)
    }
    frozen = [path for path, norm in norms.items() if not norm.training]
    if frozen and len(frozen) < len(norms):
        raise TrainingError(
            f"the batch norm {frozen[0]!r} is in evaluation mode, others train: Octavo freezes all "
            "or none, model.freeze_bn_stats()"
        )
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and not module.training:
            raise TrainingError(
                f"the dropout {path!r} is in evaluation mode in a model that trains, and that mode "
                "would be ignored: give it p=0 before prepare_qat"
            )
    return bool(frozen)


def share(qat: QATModel, model: nn.Module) -> None:
    """Let a training model hold the very parameters and buffers of the user's.

    Raises:
        TrainingError: a parameter of it is none of the model's.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for path, module in qat.named_modules(remove_duplicate=False):
        if path.startswith("fake_quantizers"):
            continue
        for name in [n for n, p in module._parameters.items() if p is not None]:
            full = f"{path}.{name}".lstrip(".")
            if full not in parameters:
                raise TrainingError(
                    f"the weight {full!r} is computed from parameters, so that an optimizer of the "
                    "model's own would not train it: use octavo.prepare_qat(model, example)"
                )
            module._parameters[name] = parameters[full]
        for name in list(module._buffers):
            full = f"{path}.{name}".lstrip(".")
            if full in buffers:
                hold(module, name, buffers[full])
