"""Modules of the user's whose forward Octavo has taken over.

``inplace=True`` asks for that: the object has to stay the one that the caller holds, with all that
it is besides its forward. So its class becomes one that derives from its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from octavo.compat.quantization.parts import close_alike, reopen
from octavo.errors import OctavoError
from octavo.graph.copying import copied


class Changed(nn.Module):
    """A module of the user's whose forward Octavo has taken over: prepared or converted."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        close_alike(copied, self)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise OctavoError(
            "a prepared or converted model is not pickled: save its state_dict(), or, converted, "
            "model.octavo_model.save(path), which octavo.load reads without the model's code"
        )

    def __prepare_scriptable__(self) -> Any:
        raise OctavoError(
            "torch.jit does not take Octavo's models: save model.octavo_model.save(path), or "
            "octavo.export_onnx(model.octavo_model, path); octavo.export_package compiles it"
        )


_CLASSES: dict[tuple[type, type], type[nn.Module]] = {}


def _class(kind: type[Changed], base: type[nn.Module]) -> type[nn.Module]:
    """A class that prints as the user's; one for each, so that types stay comparable."""
    if (kind, base) not in _CLASSES:
        own = {"__module__": base.__module__, "__qualname__": base.__qualname__}
        _CLASSES[kind, base] = type(base.__name__, (kind, base), own)
    return _CLASSES[kind, base]


def become(module: nn.Module, kind: type[Changed] | None, state: Any = None) -> nn.Module:
    """Give a module another forward, in place: it stays the object, and of the class, it was.

    Args:
        module: the user's.
        kind: what it becomes; ``None`` for what it was at first.
        state: what the new forward works with.
    """
    base = _own_class(module)
    module.__class__ = base if kind is None else _class(kind, base)
    module.__dict__.pop("_octavo", None)
    if kind is None:
        reopen(module)
    else:
        module.__dict__["_octavo"] = state
    return module


def as_float(module: nn.Module) -> nn.Module:
    """A changed module under its own class, with the forward that is written there. It is not a
    copy: what is set on one is set on both.
    """
    own_class = _own_class(module)
    own: nn.Module = own_class.__new__(own_class)
    object.__setattr__(own, "__dict__", module.__dict__)
    return own


def float_copy(module: nn.Module) -> nn.Module:
    """A copy of a changed module as it was before, with all that was set on it since."""
    shallow = copy.copy(as_float(module))
    shallow.__dict__.pop("_octavo", None)
    return copied(shallow)


def _own_class(module: nn.Module) -> type[nn.Module]:
    own = type(module)
    while issubclass(own, Changed):
        own = own.__bases__[1]
    return own


def submodules(root: nn.Module, kind: type[Changed]) -> Iterator[tuple[str, Any]]:
    """The outermost modules of a kind in a tree, with their paths."""
    if isinstance(root, kind):
        yield "", root
        return
    for name, child in root.named_children():
        for path, inner in submodules(child, kind):
            yield f"{name}.{path}".rstrip("."), inner
