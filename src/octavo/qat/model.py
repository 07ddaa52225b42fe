"""`QATModel`: a model that trains with the rounding that it will meet when it is deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.affine import QParams
from octavo.batches import Signature
from octavo.calibrate import qparams_of_weight
from octavo.call import build_output, flatten_call
from octavo.errors import PlanError, TrainingError
from octavo.graph import Graph
from octavo.plan import Plan
from octavo.program import compile_steps
from octavo.qat.fake_quantize import (
    FakeQuantize,
    LearnedFakeQuantize,
)
from octavo.qat.layer_with_norm import Mode
from octavo.qat.training_graph import TrainingGraph, training_program

_OWN = "fake_quantizers"


class QATModel(nn.Module):
    """Called as the float model is, in any training loop; `octavo.convert` makes it int8.

    Parameters and buffers have the float model's names, the modules that round stand under
    ``fake_quantizers``. So ``state_dict``, ``to`` and ``copy.deepcopy`` do what they do for any
    module.

    Attributes:
        plan: what is rounded, and why.
        signature: names of the arguments.
        target: what the model will run on.
    """

    def __init__(
        self,
        model: TrainingGraph,
        plan: Plan,
        signature: Signature,
        trainable: Mapping[str, bool],
        tied: Mapping[str, str],
        fake_quantizers: Iterable[FakeQuantize],
    ) -> None:
        super().__init__()
        self._plan = plan
        self.signature = signature
        self._model = replace(model, graph=replace(model.graph, constants={}))
        self._mode = Mode()
        self._run: Callable[..., tuple[Any, ...]] | None = None
        # Tensor -> the module that holds it, and its name there.
        self._places = {name: self._place_of(name) for name in model.graph.constants}
        self._hold(model.graph.constants, trainable, tied)
        if _OWN in self._modules:
            raise PlanError(
                f"the model has a module named {_OWN!r}, where QAT keeps its own: rename it"
            )
        by_name = {module.name.replace(".", "/"): module for module in fake_quantizers}
        self.add_module(_OWN, nn.ModuleDict(by_name))

    def _hold(
        self,
        constants: Mapping[str, Tensor],
        trainable: Mapping[str, bool],
        tied: Mapping[str, str],
    ) -> None:
        """Own the tensors: parameters are those that ``trainable`` names, others are buffers."""
        made: dict[str, nn.Parameter] = {}
        for name, tensor in constants.items():
            owner, leaf = self._places[name]
            own = tensor.detach().clone()
            if name not in trainable:
                owner._buffers[leaf] = own
                continue
            first = tied.get(name, name)
            if first not in made:
                made[first] = nn.Parameter(own, requires_grad=trainable[name])
            owner._parameters[leaf] = made[first]

    def _place_of(self, name: str) -> tuple[nn.Module, str]:
        """Not by attribute: the float model may have a layer called "plan" or "target"."""
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner._modules[part] = nn.Module()
            owner = owner._modules[part]  # type: ignore[assignment]
        return owner, leaf

    def _tensors(self) -> dict[str, Tensor]:
        """The constants of the training graph as they are now."""
        found = {}
        for name, (owner, leaf) in self._places.items():
            here = owner._parameters if leaf in owner._parameters else owner._buffers
            found[name] = here[leaf]
        return found  # type: ignore[return-value]

    def _by_tensor(self) -> dict[str, FakeQuantize]:
        """Tensor -> the module that rounds it, in the order of the graph."""
        modules: Iterable[Any] = self.get_submodule(_OWN).children()
        return {module.name: module for module in modules}

    @property
    def plan(self) -> Plan:
        """What is rounded, and why."""
        return self._plan

    @plan.setter
    def plan(self, value: object) -> None:
        raise PlanError(_FIXED)

    @property
    def qconfig(self) -> None:
        """Not kept: the plan is what a qconfig becomes."""
        return None

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        raise PlanError(_FIXED)

    @property
    def target(self) -> str:
        """Name of the target that the plan was made for."""
        return self.plan.target

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((t.device for t in self._tensors().values()), torch.device("cpu"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float model returns, of rounded weights and activations.

        Raises:
            InputError: the arguments differ in name, structure, shape or dtype from the captured.
            TrainingError: a weight or an activation is not a number any more.
        """
        graph = self._model.graph
        tensors = flatten_call(graph, args, kwargs)
        if self._run is None:
            self._run = self._compiled()
        results = self._run(*tensors, *self._tensors().values())
        if self.training:
            self._refuse_nan()
        return build_output(graph, results)

    def _compiled(self) -> Callable[..., tuple[Any, ...]]:
        graph = self._model.graph
        inputs = [given.name for given in graph.inputs]
        steps, outputs = training_program(
            replace(self._model, graph=replace(graph, constants=self._tensors())),
            self.plan,
            self._by_tensor(),
            self._mode,
            self.device,
        )
        return compile_steps([*inputs, *self._places], steps, outputs, {})

    def _refuse_nan(self) -> None:
        modules = list(self._by_tensor().values())
        flags = torch.stack([module.has_nan for module in modules])
        if not bool(flags.any()):
            return
        first = modules[int(flags.to(torch.uint8).argmax())].name
        for module in modules:
            module.has_nan.zero_()
        kind = "weight" if self.plan.tensors[first].kind == "weight" else "activation"
        raise TrainingError(
            f"the {kind} {first!r} has a NaN in it, and is the first that has; the scales are as "
            "they were before this step. Go back to the last checkpoint, and train with a lower "
            "learning rate or with gradient clipping; or look for a NaN in the data"
        )

    def train(self, mode: bool = True) -> QATModel:
        """Training mode, as for any module: dropout drops, observers observe."""
        super().train(mode)
        self._mode.training = mode
        return self

    def fake_quantize(self, enabled: bool = True) -> QATModel:
        """Round, or compute in float while ranges are being observed."""
        for module in self._by_tensor().values():
            module.enabled = enabled
        return self

    def observe(self, enabled: bool = True) -> QATModel:
        """Let the ranges of activations follow the training, or keep them."""
        for module in self._by_tensor().values():
            module.observing = enabled
        return self

    def freeze_batch_norms(self, frozen: bool = True) -> QATModel:
        """Train with the running statistics as they are, which is what will be deployed."""
        self._mode.norms_frozen = frozen
        return self

    def deployed(self) -> Graph:
        """The float graph that training has come to, batch norms folded."""
        tensors = {name: tensor.detach() for name, tensor in self._tensors().items()}
        return self._model.deployed(tensors)

    def qparams(self) -> dict[str, QParams]:
        """Scale and zero point of every quantized tensor, by name, as training has left them.

        Raises:
            CalibrationError: there was no training step and no calibration.
            TrainingError: a weight is not finite.
        """
        modules, graph = self._by_tensor(), self.deployed()
        found = {}
        for name, tensor in self.plan.quantized.items():
            module = modules[tensor.shares or name]
            if tensor.kind == "weight" and not isinstance(module, LearnedFakeQuantize):
                assert tensor.spec is not None
                found[name] = qparams_of_weight(graph.constants[name], tensor.spec)
            else:
                qparams = module.qparams()
                found[name] = replace(
                    qparams, scale=qparams.scale.detach(), zero_point=qparams.zero_point.detach()
                )
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QATModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._run = None  # operators that make tensors name a device
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}

    def extra_repr(self) -> str:
        return f"target={self.target!r}"


_FIXED = (
    "a prepared model keeps its plan: its observers and its optimizer belong to it. "
    "Prepare the float model again with the new qconfig"
)


def models_in(module: nn.Module) -> list[QATModel]:
    """The prepared models inside of a module, itself included.

    Raises:
        TrainingError: there is none.
    """
    found = [part for part in module.modules() if isinstance(part, QATModel)]
    if not found:
        raise TrainingError(
            f"{type(module).__name__} holds no model from octavo.prepare_qat: prepare the network "
            "before the training starts"
        )
    return found
