"""Tensors and modules in a tree of modules, at a path.

A tensor is a buffer, so that state dicts and ``Module.to`` know it; its name may be one that a
method of the module has as well, such as ``weight``.
"""

from __future__ import annotations

from torch import Tensor, nn


class Quantize(nn.Module):
    """Holds the scale of a tensor that no layer makes, such as an input."""

    def extra_repr(self) -> str:
        held = {name: t.item() for name, t in self.named_buffers("", False) if not t.dim()}
        return ", ".join(f"{name.removeprefix('output_')}={value}" for name, value in held.items())


def hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a module own a tensor."""
    module._buffers[name] = tensor


def held(module: nn.Module, name: str) -> Tensor:
    """The tensor that a module owns under a name."""
    tensor = module._buffers[name]
    assert tensor is not None
    return tensor


def holder(root: nn.Module, path: str) -> nn.Module:
    """The module at a path; where there is none, one that does nothing but hold."""
    module = root
    for part in path.split(".") if path else []:
        inner = module._modules.get(part)
        if inner is None:
            inner = module._modules[part] = Quantize()
        module = inner
    return module


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Let a module stand at a path, in another's place."""
    owner, _, leaf = path.rpartition(".")
    root.get_submodule(owner)._modules[leaf] = module


def strip(module: nn.Module) -> bool:
    """Take a module's own tensors away; whether it had any, or places for some."""
    tables = (module._parameters, module._buffers)
    had = any(tables)
    for table in tables:
        for name in [name for name, tensor in table.items() if tensor is not None]:
            del table[name]
    return had
