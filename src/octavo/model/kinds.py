"""Is a model the float one, a quantized one, or one in training? And what to do about another."""

from __future__ import annotations

import os

import torch
from torch import nn

from octavo.arguments import described
from octavo.errors import InputError
from octavo.model.model import QuantizedModel
from octavo.model.parts import parts_of, regions_of
from octavo.qat import QATModel


def require_quantized(q: object, function: str) -> QuantizedModel:
    """The model itself; what is not a `QuantizedModel` is refused.

    Args:
        q: what was given.
        function: name of the public function that takes it.

    Raises:
        InputError: it is something else; the message says what makes a quantized model of it.
    """
    if not isinstance(q, QuantizedModel):
        raise InputError(
            f"octavo.{function} takes a quantized model, but got {described(q)}: {_way_to_int8(q)}"
        )
    return q


def _way_to_int8(given: object) -> str:
    if isinstance(given, str | os.PathLike):
        return f"load the file first, octavo.load({os.fspath(given)!r}); the model comes first"
    if isinstance(given, QATModel):
        return "octavo.convert makes one from a model that was trained with rounding"
    if hasattr(type(given), "octavo_model"):
        return "for a model of octavo.compat, give its octavo_model"
    if isinstance(given, nn.Module):
        region = next(iter(regions_of(given)), None)
        if region is not None:
            return f"it has quantized regions: give one of them, q.get_submodule({region!r})"
        if parts_of(given):
            return (
                "its layers are modules of octavo.nn, and no graph. octavo.layer_errors and "
                'octavo.sensitivity(model, ..., scope="modules") tell of each, octavo.summary, '
                'octavo.compare and octavo.report of all; scope="regions" or "model" makes graphs'
            )
        return "octavo.quantize makes one from a float model"
    return "octavo.quantize, octavo.convert and octavo.load return one"


def require_float(model: object, function: str) -> None:
    """Refuse what is not a float model.

    Args:
        model: what was given.
        function: name of the public function that takes it.

    Raises:
        InputError: it is quantized, prepared for training, or no module at all.
    """
    others = (QuantizedModel, QATModel, torch.jit.ScriptModule)
    other = isinstance(model, others) or _of_compat(model)
    if other or not isinstance(model, nn.Module):
        raise InputError(
            f"octavo.{function} takes the float model first, but got {described(model)}: "
            f"{_way_to_float(model)}"
        )


def _way_to_float(given: object) -> str:
    if isinstance(given, QuantizedModel) or _of_compat(given):
        return "give the float model that was quantized, and then the quantized one"
    if isinstance(given, torch.jit.ScriptModule):
        return "TorchScript cannot be captured: give the nn.Module that it was made from"
    if isinstance(given, QATModel):
        return "give the model that octavo.prepare_qat was called with"
    if isinstance(given, type):
        return f"give a model, {given.__name__}(...), not its class"
    return "give a torch.nn.Module; if it is a state dict, build the network and load_state_dict it"


def _of_compat(given: object) -> bool:
    """Whether it was converted by `octavo.compat`, as a whole or a layer of it."""
    if not isinstance(given, nn.Module):
        return False
    return any(
        kind.__module__ == _LAYERS or hasattr(kind, "octavo_model")
        for module in given.modules()
        for kind in type(module).__mro__
    )


_LAYERS = "octavo.compat.quantization.layers"  # which imports this
