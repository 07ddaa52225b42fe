"""Quantized layers as the ``config.json`` of a folder in Hugging Face's layout describes them.

The tensors are in the folder's safetensors files, under the path of their layer; integers without
their shape (see `stored`). A layer that shares its weight with another has that one's path as
``tied``, and in the files only what is its own.

Tested in tests/flow/test_transformers.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.operators import dtype_of
from octavo.model.nn import QuantizedModule, from_description
from octavo.model.nn.one_operator import OneOperator


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedModule]]:
    """The quantized layers of a model, by their paths; not those inside of others."""
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if isinstance(module, QuantizedModule) and module not in inside:
            inside |= set(module.modules())
            yield path, module


def described(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All quantized layers of a model by their paths, JSON-ready."""
    owners: dict[int, str] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, module in quantized_layers(model):
        own, tensors = {}, module.tensors()
        # Of others each reading may make a tensor anew, out of what a kernel holds.
        is_shared = isinstance(module, OneOperator) and module.is_shared
        tied = owners.get(id(tensors["weight"])) if is_shared else None
        shared = set() if tied is None else {*module.weights["weight"].names}
        for name, tensor in tensors.items():
            if name not in shared:
                own[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        if is_shared and tied is None:
            owners[id(tensors["weight"])] = path
        parts[path] = {"description": module.describe(), "tensors": own}
        if tied is not None:
            parts[path]["tied"] = tied
    return parts


def stored(tensor: Tensor) -> Tensor:
    """A tensor of a quantized layer as the files hold it: integers in one axis.

    In their own shape, which is that of the float weight, a process that has not told transformers
    of Octavo's folders would take them for floats, and say no more than a warning; so it refuses.
    """
    return tensor if tensor.is_floating_point() else tensor.flatten()


def layer_of(part: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedModule:
    """A layer, out of its description and its tensors as the files hold them.

    Raises:
        ArtifactError: a description is malformed, or its tensors do not fit it.
    """
    shaped = {
        name: tensor.reshape(part["tensors"][name][1]) if name in part["tensors"] else tensor
        for name, tensor in tensors.items()
    }
    return from_description(part["description"], shaped)


def tensors_of(model: nn.Module, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """What the files hold of these layers: names -> tensors, in the order of the parts."""
    layers = dict(quantized_layers(model))
    return {
        f"{path}.{name}": stored(tensor)
        for path, part in parts.items()
        for name, tensor in layers[path].tensors().items()
        if name in part["tensors"]
    }


def without_values(part: Mapping[str, Any]) -> nn.Module:
    """A module of the tensors that are to be loaded for a layer, under their names."""
    root = nn.Module()
    for name, (dtype, shape) in part["tensors"].items():
        *around, leaf = name.split(".")
        owner = root
        for inner in around:
            if inner not in owner._modules:
                owner.add_module(inner, nn.Module())
            owner = owner.get_submodule(inner)
        tensor = torch.empty(shape, dtype=dtype_of(dtype), device="meta")
        owner.register_buffer(leaf, stored(tensor))
    return root


def with_values(model: nn.Module, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the layers in the places of what `without_values` has made, which is loaded by now.

    Raises:
        ArtifactError: a description is malformed, or its tensors do not fit it.
    """
    layers: dict[str, QuantizedModule] = {}
    for path, part in sorted(parts.items(), key=lambda item: "tied" in item[1]):
        tensors = dict(model.get_submodule(path).named_buffers())
        other = layers.get(str(part.get("tied")))
        if other is not None:
            tensors = {name: t for name, t in other.tensors().items() if name != "bias"} | tensors
        module = layer_of(part, tensors)
        if isinstance(other, OneOperator) and isinstance(module, OneOperator):
            module.adopt(other)
        layers[path] = module
        model.set_submodule(path, module.eval(), strict=True)
