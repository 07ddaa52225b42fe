"""Kernels as operators of torch, so that compilers leave a call whole and know its sizes.

Tested in tests/runtimes/native/test_eight_bits.py and tests/runtimes/native/test_attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("octavo", "FRAGMENT")


def register(schema: str, kernel: Callable[..., Any], sizes: Callable[..., Any]) -> None:
    """Make an operator ``octavo::NAME``.

    Args:
        schema: ``NAME(Tensor x, ...) -> Tensor``.
        kernel: what it does on the CPU.
        sizes: results without values, of tensors without values.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CPU")
    _LIBRARY.impl(name, sizes, "Meta")
