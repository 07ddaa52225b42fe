"""Where a quantized model stands in for a module of a larger one, and what it is asked for there.

The code around a module reads attributes of it (``backbone.out_channels``, ``encoder.config``).
What is plain among them is kept. Methods and submodules are not: the graph has none.

Tested in tests/flow/test_regions.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from octavo.errors import InputError
from octavo.graph.graph import TensorMeta

_OF_EVERY_MODULE = frozenset(dir(nn.Module)) | frozenset(vars(nn.Module()))
_CODE = (property, staticmethod, classmethod)
_VALUES = (int, float, complex, str, bytes, Enum, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Place:
    """The place of a module in a model.

    Attributes:
        path: of the module.
        kind: name of its class.
        attributes: what it has that is neither a tensor, nor a module, nor code.
        tensors: shape and dtype of its parameters and buffers, by name.
        calls: how many calls of the example's size a call of the whole model makes of it.
        around: path of a module outside of every region -> the multiply-adds that it does itself in
            a call of the whole model; ``None`` where they were not counted.
    """

    path: str
    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, TensorMeta] = field(default_factory=dict)
    calls: float = 1
    around: Mapping[str, int] | None = None

    @classmethod
    def of(cls, path: str, module: nn.Module, calls: float = 1) -> Place:
        """That of a module in its model."""
        of_class = {
            name: value
            for base in reversed(type(module).__mro__)
            for name, value in vars(base).items()
            if name not in _OF_EVERY_MODULE and not name.startswith("__")
        }
        of_itself = {n: v for n, v in vars(module).items() if n not in _OF_EVERY_MODULE}
        plain = {name: value for name, value in (of_class | of_itself).items() if _is_plain(value)}
        tensors = {name: TensorMeta.of(tensor) for name, tensor in module.state_dict().items()}
        return cls(path, type(module).__name__, plain, tensors, calls)

    def lacks(self, name: str) -> str:
        """What to say where the region is asked for what it does not have."""
        return (
            f"the region {self} is a graph, which has no {name!r}: quantize the model without this "
            "region (only=...), or its parts"
        )

    def refusal(self, error: InputError) -> InputError:
        """What to raise where a call's arguments are not those that the region was captured for."""
        return InputError(
            f"the region {self} was captured for other arguments: {error}. Let the first "
            "calibration batches lead to such calls as well, or keep the region out (only=...)"
        )

    def __str__(self) -> str:
        return f"{self.path!r} ({self.kind})"


def _is_plain(value: Any) -> bool:
    if isinstance(value, _VALUES):
        return True
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (Tensor, nn.Module, *_CODE)) or callable(value):
        return False
    # A configuration, for one. What holds a module would keep its float weights in memory.
    held = getattr(value, "__dict__", None)
    return held is not None and not any(isinstance(v, Tensor | nn.Module) for v in held.values())
