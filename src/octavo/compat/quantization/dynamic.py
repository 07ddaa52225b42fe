"""Layers that are quantized one by one, as torch.ao prints and reads them.

`octavo.flow.replacing` puts them into a model that runs as it is written; here they have the names
and methods that they had.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

from torch import nn

from octavo.compat.quantization.layers import WeightReader, name_of_kind
from octavo.errors import OctavoWarning
from octavo.flow.replacing import Decision, replace_modules
from octavo.model import nn as native
from octavo.numerics.scheme import Scheme
from octavo.quantization.qconfig import QConfig

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
DYNAMIC: tuple[type[nn.Module], ...] = (nn.Linear, *_RECURRENT)
TABLES: tuple[type[nn.Module], ...] = (nn.Embedding, nn.EmbeddingBag)


class _Named(WeightReader, native.QuantizedModule):
    """A module of `octavo.nn` under torch.ao's names."""

    output = None

    @property
    def kind(self) -> str:  # type: ignore[override]
        return name_of_kind(self.floats.__name__, self.runs, False)

    @property
    def about(self) -> str:  # type: ignore[override]
        return self.float_repr()

    @property
    def schemes(self) -> dict[str, Scheme]:  # type: ignore[override]
        return {name: weight.scheme for name, weight in self.weights.items()}

    @property
    def shapes(self) -> dict[str, list[int]]:  # type: ignore[override]
        return {name: list(weight.shape) for name, weight in self.weights.items()}


class Linear(_Named, native.Linear):
    """``DynamicQuantizedLinear``."""


class Embedding(_Named, native.Embedding):
    """``WeightOnlyEmbedding``."""


class EmbeddingBag(_Named, native.EmbeddingBag):
    """``WeightOnlyEmbeddingBag``."""


class LSTM(_Named, native.LSTM):
    """``DynamicQuantizedLSTM``."""


class GRU(_Named, native.GRU):
    """``DynamicQuantizedGRU``."""


class RNN(_Named, native.RNN):
    """``DynamicQuantizedRNN``."""


class LSTMCell(_Named, native.LSTMCell):
    """``DynamicQuantizedLSTMCell``."""


class GRUCell(_Named, native.GRUCell):
    """``DynamicQuantizedGRUCell``."""


class RNNCell(_Named, native.RNNCell):
    """``DynamicQuantizedRNNCell``."""


_ALL = (Linear, Embedding, EmbeddingBag, LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
_LAYERS: dict[type[nn.Module], type[_Named]] = {layer.floats: layer for layer in _ALL}


def float_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn that a layer computes as, of those that are quantized one by one."""
    form = native.quantized_form(module)
    return form.floats if form is not None and form.floats in _LAYERS else None


def swap_layers(
    root: nn.Module,
    qconfig_of: Callable[[str, nn.Module], QConfig | None],
    target: str,
    is_named: Callable[[str, nn.Module], bool] = lambda path, module: False,
) -> nn.Module:
    """Put quantized layers in the places of float ones; ``root`` itself where it is one.

    Args:
        root: changed in place.
        qconfig_of: path and layer -> how it is quantized.
        target: name of the target.
        is_named: whether somebody has said of a layer that it stays float.
    """

    def decide(path: str, module: nn.Module) -> Decision:
        qconfig, kind = qconfig_of(path, module), float_kind(module)
        if kind is None:
            return "only linear and recurrent layers, and tables, are quantized one by one here"
        if qconfig is None:
            return "it is to stay float" if is_named(path, module) else ""
        return "" if qconfig.mode == "dynamic" and kind in TABLES else qconfig

    def made(layer: nn.Module, qconfig: QConfig, target: str) -> nn.Module:
        kind = float_kind(layer)
        assert kind is not None
        return _LAYERS[kind].from_float(layer, qconfig, target)

    replaced = replace_modules(root, decide, target, made)
    remarks = replaced.remarks()
    if not replaced.modules:
        kinds = [kind for kind, size in replaced.sizes.values() if size]
        remarks.append(_nothing(kinds))
    for remark in remarks:
        warnings.warn(remark, OctavoWarning, stacklevel=3)
    _leave_fast_paths(replaced.model)
    return replaced.model


def _leave_fast_paths(root: nn.Module) -> None:
    """torch's own transformer layers ask what ``weight`` is, which is a method here."""
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
