"""One capture for many quantizations of a network: it takes longer than all that comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from octavo.flow import whole
from octavo.graph.graph import Graph
from octavo.qat import prepare


@contextmanager
def captured_as(graph: Graph) -> Iterator[None]:
    """Inside, `octavo.quantize` takes this graph for what it captures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole, "capture", lambda *args, **options: graph)
        yield


@contextmanager
def traced_as(graph: Graph) -> Iterator[None]:
    """Inside, `octavo.prepare_qat` takes this graph for what `traced` makes of the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "traced", lambda *args, **options: graph)
        yield
