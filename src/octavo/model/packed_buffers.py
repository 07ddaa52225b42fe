"""Buffers of which only a kernel holds the values, in a form of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor, nn

from octavo.graph.tracing import refuse_tracers


class Buffers(MutableMapping[str, Any]):
    """A module's ``_buffers``: those that a kernel holds are given back when they are read.

    A tensor that was given back is a copy: changing its values changes nothing. A value that is
    set is kept as it is.

    Example:
        >>> buffers = Buffers({"weight": torch.zeros(2)})
        >>> buffers.let_go("weight", lambda: torch.ones(2))
        >>> buffers["weight"]
        tensor([1., 1.])
    """

    def __init__(self, buffers: MutableMapping[str, Any]) -> None:
        self._values = dict(buffers)
        self._unpack: dict[str, Callable[[], Tensor]] = {}

    def let_go(self, name: str, unpack: Callable[[], Tensor]) -> None:
        """Drop a tensor; from now on ``unpack`` gives it."""
        self._values[name] = None
        self._unpack[name] = unpack

    def __getitem__(self, name: str) -> Any:
        if name not in self._unpack:
            return self._values[name]
        refuse_tracers()  # they would record the unpacking
        with torch.inference_mode(False), torch.no_grad():
            return self._unpack[name]()

    def __setitem__(self, name: str, value: Any) -> None:
        self._unpack.pop(name, None)
        self._values[name] = value

    def __delitem__(self, name: str) -> None:
        self._unpack.pop(name, None)
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def copy(self) -> dict[str, Any]:
        """A dictionary of the tensors."""
        return dict(self)

    def __reduce__(self) -> tuple[Any, ...]:
        tensors = dict(self)
        process: Any = get_spawning_popen()
        if process is not None:  # its memory is handed over once all is pickled
            vars(process).setdefault("_octavo_tensors", []).append(tensors)
        return dict, (tensors,)


def let_go(root: nn.Module, prepacked: Mapping[str, Callable[[], Tensor]]) -> None:
    """Drop the tensors that kernels hold too: they are unpacked whenever they are asked for.

    Args:
        root: holds them, in the tree of its modules.
        prepacked: name of a tensor -> what gives it back.
    """
    for name, unpack in prepacked.items():
        *path, leaf = name.split(".")
        owner: Any = root
        for part in path:
            owner = owner._modules[part]
        if torch.equal(owner._buffers[leaf], unpack()):
            if not isinstance(owner._buffers, Buffers):
                owner._buffers = Buffers(owner._buffers)
            owner._buffers.let_go(leaf, unpack)
