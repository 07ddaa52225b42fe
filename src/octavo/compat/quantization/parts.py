"""The parts of a model whose forward Octavo has taken over: what would be in vain is refused.

The graph of the whole model runs, its submodules do not. So a hook on one would never be called,
and a module or parameter that takes another's place would not be read. Hooks on the model itself
are called with it. Those by which torch makes a weight of others (pruning, weight norm) run once,
when the model is captured, and the graph has what they do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from octavo.errors import OctavoError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_TENSORS = ("_modules", "_parameters")
_UNCALLED = (
    "would never be called, since the graph of the whole model runs: "
    "octavo.compat.numeric_suite and octavo.layer_errors show what layers return"
)


class _Closed(OrderedDict[Any, Any]):
    """A table of a module to which nothing is added, since nobody would look at it."""

    def __init__(self, items: Iterable[tuple[Any, Any]], table: str, where: str) -> None:
        super().__init__()
        for key, value in items:
            super().__setitem__(key, value)
        self.table, self.where = table, where

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.table in _TENSORS and value is not self.get(key):
            raise OctavoError(
                f"{key!r} of {self.where} cannot be replaced, the model was captured with what it "
                "had: change the float model before it is prepared"
            )
        if self.table in _HOOKS and not _of_torch(value):
            raise OctavoError(f"a hook on {self.where} {_UNCALLED}")
        super().__setitem__(key, value)

    def __reduce__(self) -> Any:
        """A copy is open: a copied part is a module like any other."""
        return OrderedDict, (list(self.items()),)


def refuse_hooks(root: nn.Module) -> None:
    """Raise where a part of a model has a hook that would not be called any more.

    Raises:
        OctavoError: it names the part.
    """
    for path, module in _parts(root):
        if any(not _of_torch(hook) for name in _HOOKS for hook in getattr(module, name).values()):
            raise OctavoError(
                f"the hook on {path!r} ({type(module).__name__}) {_UNCALLED}; remove it first, "
                "handle.remove(), or do its work in forward"
            )


def close(root: nn.Module, hooks: bool) -> None:
    """Refuse other modules and parameters in a model from now on, and hooks on its parts."""
    for path, module in root.named_modules():
        where = f"{path!r} ({module._get_name()})" if path else f"the {module._get_name()}"
        for name, table in _tables(module):
            if name in _TENSORS or (hooks and path):
                module.__dict__[name] = _Closed(table.items(), name, where)


def close_alike(copied: nn.Module, model: nn.Module) -> None:
    """`close` a copy of a model, if that is closed."""
    tables = [
        isinstance(table, _Closed) and name for m in model.modules() for name, table in _tables(m)
    ]
    if any(tables):
        close(copied, hooks=any(name in _HOOKS for name in tables))


def reopen(root: nn.Module) -> None:
    """Undo `close`."""
    for module in root.modules():
        for name, table in _tables(module):
            if isinstance(table, _Closed):
                module.__dict__[name] = OrderedDict(table)


@contextmanager
def as_written(root: nn.Module) -> Iterator[nn.Module]:
    """The model open, and without the user's hooks: a capture's values are not for them."""
    kept = []
    for module in root.modules():
        for name, table in _tables(module):
            kept.append((module, name, table))
            items = ((k, v) for k, v in table.items() if name in _TENSORS or _of_torch(v))
            module.__dict__[name] = OrderedDict(items)
    try:
        yield root
    finally:
        for module, name, table in kept:
            module.__dict__[name] = table


def _tables(module: nn.Module) -> list[tuple[str, Any]]:
    """Those that a module has of its own; a scripted one lacks some."""
    own = module.__dict__
    return [(name, own[name]) for name in (*_TENSORS, *_HOOKS) if name in own]


def _parts(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in root.named_modules() if path)


def _of_torch(hook: Any) -> bool:
    """Whether it is a function of ``torch.nn``, or an object of a class of ``torch.nn.utils``."""
    if isinstance(hook, FunctionType | MethodType):
        return hook.__module__.startswith("torch.nn.")
    return any(kind.__module__.startswith("torch.nn.utils.") for kind in type(hook).__mro__)
