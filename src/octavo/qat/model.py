"""`QATModel`: a model that trains with the rounding that it will meet when it is deployed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import CalibrationError, OctavoWarning, PlanError, TrainingError, warn_user
from octavo.graph.batches import Signature
from octavo.graph.calls import build_output, flatten_call
from octavo.graph.graph import Graph
from octavo.graph.operators import arguments
from octavo.graph.passes.fold_batch_norm import tensors_of
from octavo.graph.program import compile_steps
from octavo.graph.tracing import is_compiled, refuse_scripting, refuse_tracers
from octavo.numerics.affine import QParams
from octavo.qat.fake_quantize import (
    FakeQuantize,
    LearnedFakeQuantize,
    ObservedFakeQuantize,
    unknown_range,
)
from octavo.qat.layer_with_norm import Mode
from octavo.qat.norm_modules import holder, path_of
from octavo.qat.training_graph import TrainingGraph, TrainingProgram
from octavo.quantization.plan import Plan
from octavo.quantization.weights import qparams_of_weight

_OWN = "fake_quantizers"
_BATCH_NORM = "aten.batch_norm.default"


@dataclass(frozen=True)
class Held:
    """How a model holds a constant of its training graph.

    Attributes:
        name: of the parameter or buffer, which is the float model's.
        trainable: whether it is to be trained; ``None`` is a buffer.
        tied_to: the parameter that it is one with.
        transposed: the graph reads it transposed.
        mask: where it is not zero, whatever is learned; ``None`` is everywhere.
    """

    name: str
    trainable: bool | None = None
    tied_to: str | None = None
    transposed: bool = False
    mask: Tensor | None = None


@dataclass(frozen=True)
class _Place:
    """Where a constant of the graph stands: in which module, under which name, and whether it is
    transposed and masked there.
    """

    owner: nn.Module
    name: str
    transposed: bool
    mask: str | None

    def tensor(self) -> Tensor:
        """The constant as it is now."""
        here = (
            self.owner._parameters if self.name in self.owner._parameters else self.owner._buffers
        )
        tensor = here[self.name]
        assert tensor is not None
        mask = None if self.mask is None else self.owner._buffers[self.mask]
        tensor = tensor if mask is None else tensor * mask
        return tensor.t() if self.transposed else tensor


class QATModel(nn.Module):
    """Called as the float model is, in any training loop; `octavo.convert` makes it int8.

    Parameters and buffers have the float model's names, the modules that round stand under
    ``fake_quantizers``. So ``state_dict``, ``to`` and ``copy.deepcopy`` do what they do for any
    module.

    Attributes:
        plan: what is rounded, and why.
        signature: names of the arguments.
        target: what the model will run on.

    Example:
        >>> qat = octavo.prepare_qat(model, images)
        >>> qat(images).sum().backward()
        >>> qat.conv1.weight.grad.shape
        torch.Size([8, 1, 3, 3])
    """

    accepts_loss_kwargs = False  # asked by the Trainer of transformers

    def __init__(
        self,
        model: TrainingGraph,
        plan: Plan,
        signature: Signature,
        held: Mapping[str, Held],
        fake_quantizers: Iterable[FakeQuantize],
    ) -> None:
        super().__init__()
        self._plan = plan
        self.signature = signature
        self._model = replace(model, graph=replace(model.graph, constants={}))
        self._mode = Mode()
        constants = model.graph.constants
        self._norms = self._hold_norms(model.graph, held)
        norms = [node for node in model.graph.nodes if node.op == _BATCH_NORM]
        running = [ref for norm in norms for ref in tensors_of(norm)[2:]]
        self._statistics = [ref.name for ref in running if ref is not None]
        self._places = {name: self._hold(tensor, held[name]) for name, tensor in constants.items()}
        if _OWN in self._modules:
            raise PlanError(
                f"the model has a module named {_OWN!r}, where QAT keeps its own: rename it"
            )
        by_name = {module.name.replace(".", "/"): module for module in fake_quantizers}
        self.add_module(_OWN, nn.ModuleDict(by_name))
        self._run: Callable[..., tuple[Any, ...]] = self._compiled()

    def _hold_norms(self, graph: Graph, held: Mapping[str, Held]) -> dict[str, nn.Module]:
        """Batch norm -> the module that is to hold its tensors, and nothing else."""
        names = {name: how.name for name, how in held.items()}
        norms = {}
        for node in graph.nodes:
            mean: Any = arguments(node)["running_mean"] if node.op == _BATCH_NORM else None
            path = None if mean is None else path_of(node, names)
            if path is not None:
                owner, leaf = self._place_of(path)
                channels = len(graph.constants[mean.name])
                norms[node.name] = owner._modules.setdefault(leaf, holder(node, channels))
        return norms  # type: ignore[return-value]

    def _hold(self, tensor: Tensor, held: Held) -> _Place:
        """Own a tensor, as a parameter or a buffer; where it stands."""
        owner, leaf = self._place_of(held.name)
        tied, tied_leaf = self._place_of(held.tied_to or held.name)
        before = tied._parameters.get(tied_leaf)
        own = (tensor.detach().t() if held.transposed else tensor.detach()).clone()
        if held.trainable is None:
            owner._buffers[leaf] = own
        else:
            parameter = nn.Parameter(own, held.trainable) if before is None else before
            owner._parameters[leaf] = tied._parameters[tied_leaf] = parameter
        mask = None if held.mask is None else f"{leaf}_kept"
        if mask is not None:
            owner.register_buffer(mask, held.mask, persistent=False)
        return _Place(owner, leaf, held.transposed, mask)

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
        return {name: place.tensor() for name, place in self._places.items()}

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
            ExportError: ``torch.jit.trace``, ``torch.export`` or ``torch.onnx.export`` records it.
        """
        if not is_compiled():
            refuse_tracers(_TRAINED, _CONVERT)
        graph = self._model.graph
        tensors = flatten_call(graph, args, kwargs)
        self._mode.training = self.training
        constants = self._tensors()
        before = self._observed(constants) if self.training else []
        if not self.training:
            self._warn_of_unknown_ranges()
        results = self._run(*tensors, *constants.values())
        # Asked here and not in a method: torch.compile can only break its graph here.
        if self.training and self._nan_flags().any():
            self._refuse_nan(before)
        return build_output(graph, results)

    def _observed(self, constants: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Ranges and running statistics, which a training step moves, each with a copy of it."""
        tensors = [constants[name] for name in self._statistics]
        for module in self._by_tensor().values():
            if isinstance(module, ObservedFakeQuantize):
                tensors += [module.low, module.high, module.share]
        return [(tensor, tensor.clone()) for tensor in tensors]

    def _warn_of_unknown_ranges(self) -> None:
        observed = [m for m in self._by_tensor().values() if isinstance(m, ObservedFakeQuantize)]
        unknown = [module.name for module in observed if module.enabled and not module.seen]
        if unknown:
            warnings.warn(
                f"{len(unknown)} of {len(observed)} activations have no range yet, the first is "
                f"{unknown[0]!r}: this evaluation does not round them. A training step finds them, "
                "or calibration= of prepare_qat",
                OctavoWarning,
                stacklevel=5,  # through __call__ of nn.Module
            )

    def _compiled(self) -> Callable[..., tuple[Any, ...]]:
        graph = self._model.graph
        inputs = graph.input_names()
        program = TrainingProgram(
            replace(self._model, graph=replace(graph, constants=self._tensors())),
            self.plan,
            self._by_tensor(),
            self._mode,
            self._norms,
            self.device,
        )
        steps, outputs = program.written()
        return compile_steps([*inputs, *self._places], steps, outputs, {})

    def _nan_flags(self) -> Tensor:
        return torch.stack([module.has_nan for module in self._by_tensor().values()])

    @torch.no_grad()
    def _refuse_nan(self, before: list[tuple[Tensor, Tensor]]) -> None:
        modules = list(self._by_tensor().values())
        first = modules[int((self._nan_flags() > 0).to(torch.uint8).argmax())].name
        for module in modules:
            module.has_nan.zero_()
        for tensor, value in before:
            tensor.copy_(value)
        kind = "weight" if self.plan.tensors[first].kind == "weight" else "activation"
        raise TrainingError(
            f"the {kind} {first!r} has a NaN in it, and is the first that has; scales and running "
            "statistics are as they were before this step. Go back to the last checkpoint, and "
            "train with a lower learning rate or with gradient clipping; or look for a NaN in the "
            "data"
        )

    def fake_quantize(self, enabled: bool = True) -> QATModel:
        """Round, or compute in float while ranges are being observed.

        Args:
            enabled: whether values are rounded.

        Returns:
            The model itself.
        """
        for module in self._by_tensor().values():
            module.enabled = enabled
        return self

    def observe(self, enabled: bool = True) -> QATModel:
        """Let the ranges of activations follow the training, or keep them.

        Args:
            enabled: whether they follow.

        Returns:
            The model itself.
        """
        for module in self._by_tensor().values():
            module.observing = enabled
        return self

    def freeze_batch_norms(self, frozen: bool = True) -> QATModel:
        """Train with the running statistics as they are, which is what will be deployed.

        Args:
            frozen: whether batch norms use them, and leave them as they are.

        Returns:
            The model itself.
        """
        self._mode.norms_frozen = frozen
        return self

    def deployed(self) -> Graph:
        """The float graph that training has come to, batch norms folded."""
        tensors = {name: tensor.detach() for name, tensor in self._tensors().items()}
        return self._model.deployed(tensors)

    def qparams(self) -> dict[str, QParams]:
        """Scale and zero point of every quantized tensor, by name, as training has left them.

        Raises:
            CalibrationError: there was no training step and no calibration, or a weight is not
                finite.
        """
        modules, graph = self._by_tensor(), self.deployed()
        by_tensor = {}
        for name, tensor in self.plan.quantized.items():
            module = modules[tensor.shares or name]
            if isinstance(module, ObservedFakeQuantize) and bool(module.share <= 0):
                raise CalibrationError(unknown_range(module.name))
            if tensor.kind == "weight" and not isinstance(module, LearnedFakeQuantize):
                assert tensor.spec is not None
                by_tensor[name] = qparams_of_weight(graph.constants[name], tensor.spec)
            else:
                qparams = module.qparams()
                by_tensor[name] = replace(
                    qparams, scale=qparams.scale.detach(), zero_point=qparams.zero_point.detach()
                )
        return by_tensor

    def __prepare_scriptable__(self) -> None:
        refuse_scripting(_TRAINED, _CONVERT)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QATModel:
        dtypes = {tensor.dtype for tensor in self._tensors().values()}
        if any(fn(torch.empty(0, dtype=dtype)).dtype != dtype for dtype in dtypes):
            raise TrainingError(
                "a model that trains with rounding cannot change its dtype: it computes in float32 "
                "as its scales do; torch.autocast lets its layers compute in bfloat16"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._run = self._compiled()  # operators that make tensors name a device
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._run = self._compiled()  # of the copy's own modules

    def extra_repr(self) -> str:
        return f"target={self.target!r}"


_TRAINED = "a model that trains with rounding"
_CONVERT = "octavo.convert makes the model that is deployed, which octavo.export_onnx writes"
_FIXED = (
    "a prepared model keeps its plan: its observers and its optimizer belong to it. "
    "Prepare the float model again with the new qconfig"
)


# Modules that do nothing but call the model which they hold: the class and the module's name there.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "OptimizedModule": "_orig_mod",
}


def prepared_in(module: nn.Module) -> QATModel:
    """The prepared model that a module is, or that it wraps and calls as it stands.

    Raises:
        PlanError: it is another module.
    """
    inner = module
    while not isinstance(inner, QATModel):
        owned = type(inner).__module__.split(".")[0] in ("torch", "timm")
        name = _WRAPPERS.get(type(inner).__name__) if owned else None
        name = name or _network_of_trainer(inner)
        if name is None:
            raise PlanError(_not_prepared(module))
        inner = inner.get_submodule(name)
    return inner


def _network_of_trainer(module: nn.Module) -> str | None:
    """Where a LightningModule, which says how to train, has the one prepared model in it."""
    if not any(kind.__name__ == "LightningModule" for kind in type(module).__mro__):
        return None
    inside: list[str] = [
        path for path, part in module.named_modules() if isinstance(part, QATModel)
    ]
    if len(inside) != 1:
        return None
    warn_user(
        f"converted what the {type(module).__name__} holds as {inside[0]!r}; what else its forward "
        "does is no part of the model"
    )
    return inside[0]


def _not_prepared(module: nn.Module) -> str:
    kind = type(module).__name__
    inside = [path for path, part in module.named_modules() if isinstance(part, QATModel)]
    if inside:
        return (
            f"{kind} may do more than call the model from octavo.prepare_qat that it holds as "
            f"{inside[0]!r}: convert that alone, octavo.convert(model.{inside[0]})"
        )
    return (
        f"{kind} is not a model from octavo.prepare_qat, and holds none: prepare the float model "
        "before it is trained, or quantize it as it is, octavo.quantize(model, calibration=loader)"
    )


def models_in(module: nn.Module) -> list[QATModel]:
    """The prepared models inside of a module, itself included.

    Raises:
        TrainingError: there is none.
    """
    models = [part for part in module.modules() if isinstance(part, QATModel)]
    if not models:
        raise TrainingError(
            f"{type(module).__name__} holds no model from octavo.prepare_qat: prepare the network "
            "before the training starts"
        )
    return models
