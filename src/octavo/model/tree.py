"""The tree of a model's modules: what stands where, and putting another module there.

Tested in tests/flow/test_regions.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from torch import nn


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module into every place where another stands; a module may be shared."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def children_of(path: str, module: nn.Module) -> dict[str, nn.Module]:
    """The modules right below one, by their paths in the model."""
    return {f"{path}.{name}".lstrip("."): child for name, child in module.named_children()}


def outside(model: nn.Module, parts: Iterable[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model that stay where parts of it are taken out, by their paths.

    A module that a part shares with the rest stays.
    """
    yield from model.named_modules(memo=set(parts))


def near(path: str, model: nn.Module) -> str:
    """What the path of a module may have meant, as the rest of a message."""
    paths = [name for name, _ in model.named_modules() if name]
    close = difflib.get_close_matches(path, paths, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {paths[:8]}"
