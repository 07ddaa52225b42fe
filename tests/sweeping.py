"""Sweeps: cases of one kind, of which `make test` takes a spread and `make sweeps` the rest."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def swept(values: Iterable[T], kept: Container[T]) -> list[Any]:
    """Parameters for ``parametrize``, all but the ``kept`` ones marked for `make sweeps`."""
    return [
        pytest.param(value, marks=() if value in kept else pytest.mark.sweep) for value in values
    ]
