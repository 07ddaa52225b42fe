"""What lowering gives: a function, and an account of how each part of the model runs in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Lowered:
    """A quantized graph made ready for one runtime.

    Attributes:
        runtime: its name.
        run: from the graph's input tensors, in order, to its flat results.
        kernels: node of the graph -> the int8 kernel that runs it, alone or with its neighbours.
        fallbacks: node that reads integers but runs dequantized here -> why.
    """

    runtime: str
    run: Callable[..., tuple[Any, ...]]
    kernels: Mapping[str, str]
    fallbacks: Mapping[str, str]
