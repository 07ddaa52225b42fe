"""Whether a model asks for the value of a tensor that its inputs or weights decide.

Export stops at such a value whichever sizes are open. A size that forward puts into a tensor
(``torch.tensor(x.shape)``) is such a value too while it is open, and none where it is fixed.

Tested in tests/graph/capture/test_sizes_open.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from octavo.graph.capture.torch_export import left_as_it_was
from octavo.graph.quiet import quiet
from octavo.graph.records import own_caches, with_objects

# Operators whose results, or their sizes, are values.
_READING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"})


def reads_values_alone(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call asks for values, and each of them depends on those of inputs or weights.

    One call in Python; false where it fails.
    """
    args, kwargs = own_caches(pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs)))
    given = [*pytree.tree_leaves((args, kwargs)), *model.parameters(), *model.buffers()]
    reads = _Reads(given)
    try:
        with quiet(), left_as_it_was(model), torch.no_grad(), reads:
            model(*with_objects(args), **with_objects(kwargs))
    except Exception:  # noqa: BLE001  (whatever the user's code raises)
        return False
    return reads.of_values > 0 and not reads.of_others


class _Reads(TorchDispatchMode):
    """Counts the values that are asked for: those that depend on given ones, and others."""

    def __init__(self, given: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of_values = self.of_others = 0
        self._depending: Any = WeakIdKeyDictionary()
        self._note(given)

    def _note(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._depending[value] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read = pytree.tree_leaves((args, kwargs))
        depends = any(isinstance(v, Tensor) and v in self._depending for v in read)
        if func._schema.name.removeprefix("aten::") in _READING:
            self.of_values += depends
            self.of_others += not depends
        result = func(*args, **kwargs)
        if depends:
            self._note(pytree.tree_leaves(result))
        return result
