"""Layers inside of what ``torch.compile`` compiles: each is one operator there, with a function for
the size of what it returns, so that the compiled graph goes on behind it.

An operator takes tensors and numbers, so that a layer is known by a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_COUNT = itertools.count(1)
_LAYERS: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()


def numbered(layer: nn.Module) -> int:
    """A number by which operators find a layer as long as it lives."""
    number = next(_COUNT)
    _LAYERS[number] = layer
    return number


linear: Callable[[Tensor, int, int], Tensor]
embedding: Callable[[Tensor, int, int, torch.dtype], Tensor]


def _linear(x: Tensor, number: int, size: int) -> Tensor:
    result: Tensor = _LAYERS[number](x)
    return result


def _embedding(indices: Tensor, number: int, size: int, dtype: torch.dtype) -> Tensor:
    result: Tensor = _LAYERS[number](indices)
    return result


def _size_of_linear(x: Tensor, number: int, size: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], size))


def _size_of_embedding(indices: Tensor, number: int, size: int, dtype: torch.dtype) -> Tensor:
    return indices.new_empty((*indices.shape, size), dtype=dtype)


_LIBRARY = torch.library.Library("octavo", "FRAGMENT")
for _name, _schema, _function, _sizes in (
    ("linear_layer", "Tensor x, int number, int size", _linear, _size_of_linear),
    (
        "embedding_layer",
        "Tensor indices, int number, int size, ScalarType dtype",
        _embedding,
        _size_of_embedding,
    ),
):
    _LIBRARY.define(f"{_name}({_schema}) -> Tensor")
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _sizes, "Meta")
linear = torch.ops.octavo.linear_layer.default
embedding = torch.ops.octavo.embedding_layer.default
