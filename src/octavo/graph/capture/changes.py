"""What calls change of a module: found, and undone.

Tested in tests/graph/capture/test_capture.py and tests/flow/test_regions.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def undone(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Afterwards each of the modules has the attributes that it had before, containers among them
    their content, and buffers their values.
    """
    modules = list(modules)
    buffers = [b for m in modules for b in m._buffers.values() if b is not None]
    values = [(b, b._version, b.clone()) for b in buffers if not b.is_inference()]
    before = [(vars(module), dict(vars(module)), _containers(vars(module))) for module in modules]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, value in values:
                if buffer._version != version:
                    buffer.copy_(value)
        for namespace, attributes, containers in before:
            for container, content in containers:
                container.clear()
                is_list = isinstance(content, list | deque)
                container.extend(content) if is_list else container.update(content)
            namespace.clear()
            namespace.update(attributes)


def _containers(attributes: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(v, v.copy()) for v in attributes.values() if isinstance(v, _CONTAINERS)]


def state_of(module: nn.Module) -> dict[str, list[Same]]:
    """What a call could change of a module, by name: its attributes, and what they hold."""
    return {
        f"{path}.{name}".lstrip("."): [Same(value), *map(Same, _content(value))]
        for path, part in module.named_modules()
        for name, value in vars(part).items()
    }


def changed(module: nn.Module, before: Mapping[str, list[Same]]) -> list[str]:
    """Names of what is another than it was.

    Args:
        module: as it is now.
        before: its `state_of` then.
    """
    return [name for name, value in state_of(module).items() if before.get(name) != value]


class Same:
    """Equal to the same object, as long as that holds the same values."""

    def __init__(self, value: Any) -> None:
        self.value = value
        is_tensor = isinstance(value, Tensor) and not value.is_inference()
        self.version = value._version if is_tensor else 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        plain = isinstance(self.value, int | float | str)  # other objects of equal value are made
        same = self.value is other.value or (plain and self.value == other.value)
        return same and self.version == other.version

    __hash__ = None  # type: ignore[assignment]


_CONTAINERS = (dict, list, set, deque)


def _content(value: Any) -> Iterable[Any]:
    if not isinstance(value, _CONTAINERS):
        return ()
    return value.values() if isinstance(value, dict) else value
