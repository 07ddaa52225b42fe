"""Running a model in Python to see how its submodules are called, and whether they are functions.

A graph computes results from arguments, and does nothing else. A module that changes its arguments
or itself, or that takes or returns objects of its own (a cache), is more than that.

Tested in tests/flow/test_regions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.flow.running import Run, run_all
from octavo.graph.capture.changes import Same, changed, state_of

_LEAVES = (Tensor, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout)


@dataclass
class Seen:
    """What was seen of a module.

    Attributes:
        count: how often it was called.
        args, kwargs: of the first call.
        problem: why it is not a function of its arguments; ``""`` if it may be one.
    """

    count: int = 0
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    _before: list[list[Any]] = field(default_factory=list)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a call that begins."""
        if not self.count:
            self.args, self.kwargs = pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs))
        self.count += 1
        self._before.append([_held((args, kwargs)), state_of(module)])

    def leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Note a call that ends."""
        arguments, state = self._before.pop()
        stored = next(iter(changed(module, state)), None)
        odd = next(_odd((args, kwargs)), None)
        if odd is not None:
            self.problem = f"it takes a {type(odd).__name__}, which a graph has no place for"
        elif _held((args, kwargs)) != arguments:
            self.problem = "it changes its arguments"
        elif (odd := next(_odd(result), None)) is not None:
            self.problem = f"it returns a {type(odd).__name__}, which a graph has no place for"
        elif stored is not None:
            self.problem = f"it changes {stored!r} of itself when it is called"


def watch(
    model: nn.Module, modules: Mapping[str, nn.Module], runs: Sequence[Run]
) -> dict[str, Seen]:
    """Run the model, and see how some of its modules are called."""
    seen = {path: Seen() for path in modules}
    hooks = []
    for path, module in modules.items():
        enter, leave = seen[path].enter, seen[path].leave
        # Before the user's own hooks, which are a part of the module.
        hooks.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave, with_kwargs=True))
    with _removing(hooks):
        run_all(model, runs)
    return seen


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    tell: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
) -> Iterator[None]:
    """Inside, the arguments of each call of these modules are told, with the module's path."""

    def hook(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tell(path, args, kwargs)

    hooks = [
        module.register_forward_pre_hook(partial(hook, path), prepend=True, with_kwargs=True)
        for path, module in modules.items()
    ]
    with _removing(hooks):
        yield


@contextmanager
def hooked_results(
    modules: Mapping[str, nn.Module],
    tell: Callable[[str, tuple[Any, ...], dict[str, Any], Any], None],
) -> Iterator[None]:
    """Inside, each call of these modules is told: the path, the arguments, and the result."""

    def hook(
        path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        tell(path, args, kwargs, result)

    hooks = [
        module.register_forward_hook(partial(hook, path), with_kwargs=True)
        for path, module in modules.items()
    ]
    with _removing(hooks):
        yield


@contextmanager
def _removing(hooks: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _odd(tree: Any) -> Iterator[Any]:
    """The objects in it that are neither values nor structures of them."""
    if isinstance(tree, list | tuple):
        for item in tree:
            yield from _odd(item)
    elif isinstance(tree, dict):
        yield from _odd(list(tree.values()))
    elif not isinstance(tree, _LEAVES):
        yield tree


def _held(tree: Any) -> list[Any]:
    """What a call could change of its arguments: which objects they are, and what tensors hold."""
    return [Same(leaf) for leaf in pytree.tree_leaves(tree)]
