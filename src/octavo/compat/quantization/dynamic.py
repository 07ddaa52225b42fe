"""Layers that are quantized one by one, in a model that runs as it is written.

Dynamic and weight-only quantization need neither data nor a graph, so layers change at once, and
models that cannot be captured keep their loops and branches.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from octavo.compat.quantization.coverage import Weights
from octavo.compat.quantization.holding import held, hold, put
from octavo.compat.quantization.layers import (
    QuantizedLayer,
    about,
    name_of_kind,
    refuse_other_dtypes,
)
from octavo.errors import OctavoError, OctavoWarning
from octavo.graph.batches import Signature
from octavo.graph.capture.capture import capture
from octavo.model.model import QuantizedModel
from octavo.numerics import octavo_operators
from octavo.numerics.affine import QParams, quantized
from octavo.quantization.convert import quantize_graph
from octavo.quantization.plan import plan
from octavo.quantization.qconfig import QConfig, QConfigMapping
from octavo.quantization.weights import qparams_of_weight

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
# Exactly these: what derives from nn.Linear may be used for its weight alone.
DYNAMIC: tuple[type[nn.Module], ...] = (nn.Linear, *_RECURRENT)
WEIGHT_ONLY: tuple[type[nn.Module], ...] = (*DYNAMIC, nn.Embedding)


class DynamicLayer(QuantizedLayer):
    """A layer that holds integers and runs alone.

    Args:
        layer: the float one; it is left as it is.
        qconfig: dynamic or weight-only.
        target: name of the target.
    """

    def __init__(self, layer: nn.Module, qconfig: QConfig, target: str) -> None:
        found = {}
        for name, parameter in layer.named_parameters():
            if name.endswith(("_orig", "_g", "_v")):
                raise OctavoError(
                    f"the weight of a {type(layer).__name__} is computed, since it has a {name!r}: "
                    "make it a parameter first, with torch.nn.utils.remove_weight_norm, "
                    "remove_spectral_norm or prune.remove"
                )
            if parameter.dim() > 1:
                found[name] = qparams_of_weight(parameter, qconfig.weight)
        weights = {
            name: (q.scheme, list(layer.get_parameter(name).shape)) for name, q in found.items()
        }
        kind = name_of_kind(layer, qconfig.mode.replace("_", "-"), False)
        super().__init__(kind, about(layer), weights)
        self.qconfig, self.target = qconfig, target
        empty = copy.deepcopy(layer).to("meta")
        for table in ("_forward_pre_hooks", "_forward_hooks"):
            getattr(empty, table).clear()
            for kind in (table, f"{table}_with_kwargs"):
                setattr(self, kind, getattr(layer, kind).copy())
        self._empty = (empty,)  # in a tuple: it is not a submodule
        self._run: Callable[..., Any] | None = None
        for name, parameter in layer.named_parameters():
            if name not in found:
                hold(self, name, parameter.detach().clone())
                continue
            qparams = found[name]
            hold(self, name, _integers(parameter.detach(), qparams))
            hold(self, f"{name}_scale", qparams.scale)
            hold(self, f"{name}_zero_point", qparams.zero_point)
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._run is None:
            empty = self._empty[0]
            make = _recurrent if isinstance(empty, _RECURRENT) else _flat
            self._run = make(self)
        with torch.no_grad():
            return self._run(*args, **kwargs)

    def float_layer(self) -> nn.Module:
        """The layer in float, of the rounded weights."""
        layer = copy.deepcopy(self._empty[0]).to_empty(device=_device(self))
        for name, parameter in layer.named_parameters():
            rounded = name in self.schemes
            parameter.data = self.quantized(name).dequantize() if rounded else held(self, name)
        return layer.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        refuse_other_dtypes(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._run = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}


def _forget(module: Any, keys: Any) -> None:
    module._run = None


def _device(module: nn.Module) -> torch.device:
    return next(buffer.device for buffer in module.buffers())


def _integers(weight: Tensor, qparams: QParams) -> Tensor:
    integers = quantized(weight, qparams)
    return octavo_operators.pack_int4(integers) if qparams.scheme.integers.bits <= 4 else integers


def _flat(layer: DynamicLayer) -> Callable[[Tensor], Tensor]:
    """A linear layer or a table, as a quantized model of rows; tensors of any rank are rows."""
    twin: Any = layer.float_layer()
    is_table = isinstance(twin, nn.Embedding)
    size = (2,) if is_table else (2, int(twin.in_features))
    rows = torch.zeros(size, dtype=torch.long if is_table else torch.float32)
    graph = capture(twin, rows.to(_device(layer)))
    mapping = QConfigMapping().set_global(layer.qconfig)
    decided = plan(graph, mapping, layer.target, layer.qconfig.mode)
    qparams = {
        name: QParams(q.scale, q.zero_point, planned.spec.scheme)
        for name, planned in decided.quantized.items()
        if (q := layer.quantized(name)) is not None and planned.spec is not None
    }
    run = QuantizedModel(quantize_graph(graph, decided, qparams), decided, Signature.of(twin), {})

    def forward(x: Tensor) -> Tensor:
        inner = x.reshape(-1) if is_table else x.reshape(-1, x.shape[-1])
        result: Tensor = run(inner)
        return result.reshape(*(x.shape if is_table else x.shape[:-1]), result.shape[-1])

    return forward


def _recurrent(layer: DynamicLayer) -> Callable[..., Any]:
    """A recurrent layer: the input is rounded at each call, the state is float."""
    twin = layer.float_layer()
    activation = layer.qconfig.activation

    def rounded(x: Tensor) -> Tensor:
        if activation is None:
            return x
        scheme = activation.scheme
        return octavo_operators.fake_quantize_dynamic(
            x, scheme.qmin, scheme.qmax, scheme.symmetric, scheme.per_token
        )

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, nn.utils.rnn.PackedSequence):
            return twin(x._replace(data=rounded(x.data)), *args, **kwargs)
        return twin(rounded(x), *args, **kwargs)

    return forward


def swap_layers(
    root: nn.Module, qconfig_of: Callable[[str, nn.Module], QConfig | None], target: str
) -> nn.Module:
    """Put quantized layers in the places of float ones; ``root`` itself where it is one.

    Args:
        root: changed in place.
        qconfig_of: path and layer -> how it is quantized.
        target: name of the target.
    """
    weights = Weights(root)
    dynamic_layers: dict[int, DynamicLayer] = {}
    left: list[str] = []
    for path, module in list(root.named_modules(remove_duplicate=False)):
        qconfig = qconfig_of(path, module)
        if qconfig is None:
            continue
        kinds = DYNAMIC if qconfig.mode == "dynamic" else WEIGHT_ONLY
        if is_parametrized(module) and issubclass(type(module), kinds):
            warnings.warn(
                f"{path!r} stays float, since its weight is computed: "
                "torch.nn.utils.parametrize.remove_parametrizations makes it a parameter",
                OctavoWarning,
                stacklevel=3,
            )
        if type(module) not in kinds:
            left += [type(module).__name__] if any(True for _ in module.parameters(False)) else []
            continue
        if id(module) not in dynamic_layers:
            dynamic_layers[id(module)] = DynamicLayer(module, qconfig, target)
            weights.are_integers(module)
        if not path:
            return dynamic_layers[id(module)]
        put(root, path, dynamic_layers[id(module)])
    remarks = weights.remarks() if dynamic_layers else [_nothing(left)]
    for remark in remarks:
        warnings.warn(remark, OctavoWarning, stacklevel=3)
    _leave_fast_paths(root)
    return root


def _leave_fast_paths(root: nn.Module) -> None:
    """torch's own transformer layers have one kernel for all that they hold, if it is float."""
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what the kernel would be told; else unused
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _nothing(left: Iterable[str]) -> str:
    kinds = ", ".join(sorted(set(left))) or "no layer with weights"
    return (
        f"the model stays float: there is {kinds}, and only linear and recurrent layers are "
        "dynamic here; octavo.quantize with a rule for a convolution makes that dynamic too"
    )
