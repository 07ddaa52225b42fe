"""Sizes of one in an example, which export would take for constants: repeated where the model takes
more.

Tested in tests/graph/capture/test_capture.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from octavo.graph.capture.parameter_data import ParametersStay
from octavo.graph.capture.torch_export import left_as_it_was
from octavo.graph.quiet import quiet
from octavo.graph.records import with_objects

Call = tuple[tuple[Any, ...], dict[str, Any]]
# Place of a tensor in a call, and axis.
Sizes = tuple[tuple[int, int], ...]

_MOST = 6  # sizes of which all subsets are tried


def repeated(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    """Calls to capture a model with in place of one that has sizes of one: best first.

    Sizes of one that belong together have to be repeated together, as of a sequence and the states
    it starts from, and some are never more than one, as the heads of a mask for all heads. Which
    they are is seen from what the model runs on.
    """
    call = (args, kwargs)
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    ones = [(i, axis) for i, t in enumerate(tensors) for axis, n in enumerate(t.shape) if n == 1]
    if not ones:
        yield call
        return
    first = tuple(size for size in ones if size[1] == 0)
    found = next((sizes for sizes in _subsets(ones, first) if _runs(model, _with(call, sizes))), ())
    if found:
        yield _with(call, found)
    if first and first != found and len(found) > len(first) and _runs(model, _with(call, first)):
        yield _with(call, first)


def _subsets(ones: list[tuple[int, int]], first: Sizes) -> Iterator[Sizes]:
    """The largest first; of too many only all of them, and the first axes."""
    if len(ones) > _MOST:
        yield from (tuple(ones), first)
        return
    for count in range(len(ones), 0, -1):
        yield from itertools.combinations(ones, count)


def _with(call: Call, sizes: Sizes) -> Call:
    """The call with these sizes, of one, repeated to two."""
    count = itertools.count()

    def repeat(tensor: Tensor) -> Tensor:
        index = next(count)
        for axis in (axis for place, axis in sizes if place == index):
            tensor = torch.cat([tensor, tensor], axis)
        return tensor

    args, kwargs = pytree.tree_map_only(Tensor, repeat, call)
    return args, kwargs


def _runs(model: nn.Module, call: Call) -> bool:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, call)
    try:
        with quiet(), left_as_it_was(model), torch.no_grad(), ParametersStay():
            model(*with_objects(args), **with_objects(kwargs))
    except Exception:  # noqa: BLE001  (whatever the user's code raises for another size)
        return False
    return True
