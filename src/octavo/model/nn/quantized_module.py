"""`QuantizedModule`: what all modules of `octavo.nn` have in common.

Tested in tests/model/nn/test_linear.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from octavo.errors import InputError, OctavoError, PlanError, first_line
from octavo.graph.graph import TensorMeta
from octavo.graph.operators import dtype_of
from octavo.graph.tracing import call_whole, refuse_scripting
from octavo.graph.weight_layouts import WEIGHT_LAYOUTS, WeightLayout
from octavo.model.gradients import tell_where_gradients_end
from octavo.model.nn.dequantized import Dequantized
from octavo.model.nn.description import Description
from octavo.model.nn.float_layers import obstacle_of, taking_place, tensors_of
from octavo.model.nn.stored_weight import StoredWeight
from octavo.numerics.affine import QParams
from octavo.numerics.scheme import Scheme
from octavo.quantization.placement.candidates import range_of_input
from octavo.quantization.placement.specs import weight_spec
from octavo.quantization.qconfig import QConfig, QSpec
from octavo.quantization.targets import target as target_named
from octavo.quantization.weights import qparams_of_weight

if TYPE_CHECKING:
    from typing import Self  # which Python 3.10 has not

# Of the tensors, at the first call; a copy makes its own.
_MADE = ("_ready", "_packed", "_products", "_without_values")


class QuantizedModule(nn.Module):
    """A layer whose weights are integers, in the place of a float one.

    It takes what the float layer takes and returns the same in the input's dtype, without
    gradients: whatever stands around it may be trained, it is not. Its state dict holds integers,
    scales and zero points, see `StoredWeight`; a bias is float32. Other code may read its weights
    by their names as if they were float.

    Args:
        description: what it is.
        tensors: those that ``description`` asks for, by name. They are not copied.

    Attributes:
        description: what it is, but for the tensors.
        weights: name -> how it is kept.
    """

    floats: ClassVar[type[nn.Module]]  # the float layer
    operator: ClassVar[str]  # as rules name it
    settings: ClassVar[tuple[str, ...]]  # the arguments of the float layer, which are attributes
    changes: ClassVar[int] = 0  # how often any of these modules was given other tensors

    def __init_subclass__(
        cls, floats: type[nn.Module] | None = None, operator: str = "", **options: Any
    ) -> None:
        super().__init_subclass__(**options)
        if floats is not None:
            cls.floats, cls.operator = floats, operator

    def __init__(self, description: Description, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.description = description
        shapes = self.parameter_shapes(description)
        self.weights = {
            name: StoredWeight(name, shapes[name], scheme)
            for name, scheme in description.weights.items()
        }
        for name, value in description.settings.items():
            if name not in shapes and not (name == "bias" and self._bias_is_a_tensor()):
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
        if self._bias_is_a_tensor():
            self._buffers["bias"] = None
        # Not by attribute: reading one of that name gives floats.
        self._buffers.update(tensors)

    @classmethod
    def takes(cls, layer: nn.Module) -> bool:
        """Whether it computes what a float layer does: one of `floats` with that forward."""
        return isinstance(layer, cls.floats) and type(layer).forward is cls.floats.forward

    @classmethod
    def from_float(cls, layer: nn.Module, qconfig: QConfig, target: str = "x86") -> Self:
        """The quantized form of a float layer, which is left as it is.

        Args:
            layer: of the class of `floats`, with its weights.
            qconfig: dynamic or weight-only.
            target: where it will run, see `octavo.targets`.

        Raises:
            PlanError: it has no such form; the message says why.
            CalibrationError: a weight has a NaN or an infinity in it.
        """
        obstacle = cls.obstacle(layer, qconfig)
        if obstacle is not None:
            raise PlanError(f"the {type(layer).__name__} cannot be quantized: {obstacle}")
        floats = tensors_of(layer)
        spec, activation = cls.specs(layer, qconfig, target)
        dtype = next(iter(floats.values())).dtype
        weights = {name: spec.scheme for name, tensor in floats.items() if tensor.dim() > 1}
        description = Description(
            cls.__name__,
            cls.settings_of(layer),
            weights,
            None if activation is None else activation.scheme,
            str(dtype).removeprefix("torch."),
        )
        tensors: dict[str, Tensor] = {}
        for name, tensor in floats.items():
            values = tensor.detach().to(torch.float32).contiguous()
            if name in weights:
                stored = StoredWeight(name, tuple(values.shape), spec.scheme)
                tensors |= stored.tensors_of(values, qparams_of_weight(values, spec))
            else:
                tensors[name] = values.clone()
        module = cls(description, tensors)
        return taking_place(module, layer)

    @classmethod
    def obstacle(cls, layer: nn.Module, qconfig: QConfig) -> str | None:
        """Why a float layer has no quantized form, as a clause; ``None`` where it has one."""
        return obstacle_of(layer, qconfig)

    @classmethod
    def specs(cls, layer: nn.Module, qconfig: QConfig, target: str) -> tuple[QSpec, QSpec | None]:
        """How the weights, and the input at each call, are quantized."""
        layout = cls.layout()
        pairs = cls.sums_pairs(layer)
        weight = weight_spec(qconfig.weight, layout, target_named(target), pairs)
        if qconfig.activation is None or layout.input is None:
            return weight, None
        return weight, range_of_input(layout, qconfig.activation)

    @classmethod
    def sums_pairs(cls, layer: nn.Module) -> bool:
        """Whether int8 kernels sum products of several of its inputs."""
        return cls.layout().input_axis is not None

    @classmethod
    def layout(cls) -> WeightLayout:
        """What the axes of its weights mean."""
        return WEIGHT_LAYOUTS[cls.operator]

    @classmethod
    def settings_of(cls, layer: nn.Module) -> dict[str, Any]:
        """The arguments that make such a layer, JSON-ready."""
        settings = {}
        for name in cls.settings:
            value = getattr(layer, name)
            if name == "bias" and not isinstance(value, bool):
                value = value is not None
            settings[name] = list(value) if isinstance(value, tuple) else value
        return settings

    @classmethod
    def empty(cls, settings: Mapping[str, Any]) -> nn.Module:
        """A float layer of such settings, without values."""
        return cls.floats(**settings, device="meta").eval()

    @classmethod
    def parameter_shapes(cls, description: Description) -> dict[str, tuple[int, ...]]:
        """The shapes of the float layer's parameters, by name."""
        empty = cls.empty(description.settings)
        return {name: tuple(p.shape) for name, p in empty.named_parameters()}

    def float_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors in the state dict of the float layer that it was."""
        return self.parameter_shapes(self.description)

    @classmethod
    def metas(cls, description: Description) -> dict[str, TensorMeta]:
        """Shape and dtype of all tensors that a module of this description holds."""
        metas: dict[str, TensorMeta] = {}
        for name, shape in cls.parameter_shapes(description).items():
            if name in description.weights:
                metas |= StoredWeight(name, shape, description.weights[name]).metas
            else:
                metas[name] = TensorMeta(shape, "float32")
        return metas

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Self:
        """The module that `describe` described, of the tensors of its state dict.

        Raises:
            ArtifactError: the description is not of such a module, or the tensors do not fit it.
        """
        known = Description.from_dict(description, cls.__name__, cls.settings)
        known.check(cls.metas, tensors)
        return cls(known, tensors)

    def describe(self) -> dict[str, Any]:
        """All but the tensors, JSON-ready; `from_description` takes it."""
        return self.description.to_dict()

    @property
    def runs(self) -> str:
        """``"dynamic"`` or ``"weight_only"``."""
        return "weight_only" if self.description.activation is None else "dynamic"

    @property
    def activation(self) -> Scheme | None:
        """How the input is rounded at each call; ``None`` where it stays float."""
        return self.description.activation

    @property
    def dtype(self) -> torch.dtype:
        """Of the float layer that it was."""
        return dtype_of(self.description.dtype)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(buffer.device for buffer in self.buffers())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that it holds, by their names in its state dict."""
        return self.own_tensors()

    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors that it holds itself, by name."""
        return {name: tensor for name, tensor in self._buffers.items() if tensor is not None}

    def dequantized(self) -> dict[str, Tensor]:
        """The float layer's parameters, float32, of the rounded weights."""
        tensors = self.own_tensors()
        rounded = {name: weight.floats(tensors) for name, weight in self.weights.items()}
        own = {name for weight in self.weights.values() for name in weight.names}
        return rounded | {name: tensor for name, tensor in tensors.items() if name not in own}

    def take_integers(self, name: str, integers: Tensor, qparams: QParams) -> None:
        """Hold other integers for a weight, of the same scheme."""
        self._buffers.update(self.weights[name].stored(integers, qparams))
        self.forget()

    def compute(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float layer returns, of quantized weights.

        Raises:
            InputError: the arguments do not fit the layer.
            ExportError: ``torch.jit.trace``, ``torch.export`` or ``torch.onnx.export`` records it.
        """
        tell_where_gradients_end(self, f"a {self._get_name()}", (*args, *kwargs.values()))
        return call_whole(self._call, args, kwargs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with torch.no_grad():
                return self.compute(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise InputError(
                f"the {self!r} cannot take these inputs: {first_line(error)}"
            ) from error

    def __getattr__(self, name: str) -> Any:
        weight = self.__dict__.get("weights", {}).get(name)
        if weight is None:
            return super().__getattr__(name)
        return Dequantized(
            lambda: weight.floats(self.own_tensors()), weight.shape, self.dtype, self.device
        )

    def _bias_is_a_tensor(self) -> bool:
        return "bias" in self.settings and not issubclass(self.floats, nn.RNNBase | nn.RNNCellBase)

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"

    def extra_repr(self) -> str:
        schemes = {str(scheme): None for scheme in self.description.weights.values()}
        read = "" if self.activation is None else f", input={self.activation}, at each call"
        return f"{self.float_repr()}, weights={', '.join(schemes)}{read}"

    def float_repr(self) -> str:
        """The sizes, as the float layer prints them."""
        return self.empty(self.description.settings).extra_repr()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        dtypes = {tensor.dtype for tensor in self.own_tensors().values()}
        if any(fn(torch.empty(0, dtype=dtype)).dtype != dtype for dtype in dtypes):
            raise OctavoError(
                "a quantized layer cannot change its dtype: its scales are float32; change that of "
                "the float model before it is quantized"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _MADE}

    def forget(self) -> None:
        """Drop what was made ready of the tensors, which are other ones from now on."""
        QuantizedModule.changes += 1

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {name: state_dict.get(prefix + name) for name in self.own_tensors()}
        for name, (there, here) in _differing(given, self.metas(self.description)).items():
            error_msgs.append(
                f"{prefix + name!r} is {there} there and {here} here: quantize this model as that "
                "one was"
            )
        for weight in self.weights.values():
            missing = [prefix + name for name in weight.names if given[name] is None]
            if 0 < len(missing) < len(weight.names):
                error_msgs.append(
                    f"{', '.join(map(repr, missing))} is missing of the {weight.name} of the "
                    f"{self._get_name()}: give its integers, scales and zero points, or none"
                )
        if any(tensor is not None for tensor in given.values()) and not error_msgs:
            self.make_own()
            super()._load_from_state_dict(
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )
        else:
            missing_keys.extend(prefix + name for name, tensor in given.items() if tensor is None)
        self.forget()

    def make_own(self) -> None:
        """Let the module hold tensors that can be written to."""

    def __prepare_scriptable__(self) -> None:
        refuse_scripting()


def _differing(
    given: Mapping[str, Any], metas: Mapping[str, TensorMeta]
) -> dict[str, tuple[TensorMeta, TensorMeta]]:
    """The tensors of another shape or dtype: what they are, and what is expected."""
    return {
        name: (TensorMeta.of(tensor), metas[name])
        for name, tensor in given.items()
        if isinstance(tensor, Tensor) and TensorMeta.of(tensor) != metas[name]
    }
