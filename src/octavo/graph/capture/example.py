"""What is captured: a module whose values are there, with arguments that a graph can have."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from octavo.arguments import described
from octavo.errors import CaptureError, InputError
from octavo.graph.records import OTHER_CACHE

_PLAIN = (Tensor, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout)

PACKED = (
    "a graph has no packed sequences, whose sizes depend on values: give the model padded tensors, "
    "and read each sequence's last step by torch.gather; or quantize the layers around it"
)


def module_of(model: Any) -> nn.Module:
    """The module itself, taken out of the wrappers that spread it over devices.

    Raises:
        InputError: it is not a module, or its parameters hold no values or have no sizes yet.
        CaptureError: it is compiled TorchScript.
    """
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is {described(model)}, not a torch.nn.Module: {_way_to_module(model)}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__} is compiled TorchScript, which cannot be captured: start from "
            "the nn.Module that it was made from"
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        raise InputError(
            f"{lazy!r} has no sizes yet: lazy modules of torch.nn find them at their first call. "
            "Call the model once, model(x), before it is quantized"
        )
    without = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if without:
        raise InputError(
            f"the parameter {without[0]!r} is on the meta device, which holds no values: load the "
            "weights first, with load_state_dict(..., assign=True)"
        )
    return model


def _way_to_module(given: Any) -> str:
    """What to give in place of something that is no module."""
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f"give a model, {given.__name__}(...), not its class"
    if isinstance(given, str | os.PathLike) and os.fspath(given).endswith(".octavo"):
        return f"it is quantized already, and octavo.load({os.fspath(given)!r}) gives it"
    if isinstance(given, str | os.PathLike) and os.fspath(given).endswith(".onnx"):
        return "Octavo starts from PyTorch: give the model that this file was exported from"
    if isinstance(given, str | os.PathLike):
        return (
            "build the network, and load its weights: "
            f"model.load_state_dict(torch.load({os.fspath(given)!r}))"
        )
    if isinstance(given, Mapping):
        nested = next((key for key in _STATES if isinstance(given.get(key), Mapping)), None)
        found = "the state dict" if nested is None else f"checkpoint[{nested!r}]"
        return f"build the network, and give it {found}: model.load_state_dict(...)"
    return "give the network itself; of a state dict, build it and load_state_dict it"


# Under which keys trainers keep the state dict of a model.
_STATES = ("state_dict", "model_state_dict", "model", "net")


def signature_of(model: nn.Module) -> inspect.Signature:
    """The signature of a module's ``forward``; of a wrapper that passes all on, that of the module
    in it.

    Raises:
        InputError: it has none, as what ``torch.jit.trace`` returns.
    """
    try:
        signature = inspect.signature(model.forward)
    except ValueError:
        raise InputError(
            f"the forward of the {type(model).__name__} has no signature; if it is TorchScript, "
            "give the nn.Module that it was made from"
        ) from None
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    inside = list(model.children())
    return signature_of(inside[0]) if kinds == _ALL_PASSED_ON and len(inside) == 1 else signature


_ALL_PASSED_ON = [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


def arguments_of(example: Any) -> tuple[Any, ...]:
    """Positional arguments: the items of a tuple or list, else the one thing that is given."""
    many = isinstance(example, tuple | list) and not isinstance(example, PackedSequence)
    return tuple(example) if many else (example,)


def check_example(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Whether a model can be captured with these arguments.

    Raises:
        InputError: one is neither a tensor nor a plain value, or there is no sample in them.
    """
    leaves = list(_leaves((args, dict(kwargs))))
    for leaf in leaves:
        if not isinstance(leaf, _PLAIN):
            raise InputError(f"the example holds {described(leaf)}: {_way_out(leaf)}")
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
    if sizes and not any(sizes):
        raise InputError("the example has no samples: its batch is of size 0; give one or more")


def _leaves(tree: Any) -> Iterator[Any]:
    yield from pytree.tree_leaves(tree, is_leaf=lambda part: isinstance(part, PackedSequence))


def _way_out(leaf: Any) -> str:
    if isinstance(leaf, PackedSequence):
        return PACKED
    if isinstance(leaf, DataLoader | Dataset | Iterator):
        return "it is data: give it by its keyword, calibration=loader, and no example"
    if hasattr(leaf, "get_seq_length"):
        return OTHER_CACHE
    if type(leaf).__module__ == "numpy":
        return "give tensors, torch.from_numpy(array)"
    return "give tensors and numbers, in dicts, lists and tuples"
