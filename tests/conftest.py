"""What holds for every test: few threads, a fixed seed, repeatable hypothesis runs, no windows."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator

# Before torch is imported, and inherited by the processes that tests start: more threads than that
# fight over a small machine, and on a large one would change the order of float sums. Tests that
# run in parallel have one each, since torch's spin while they wait; what they inherit is meant for
# the process that started them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("MPLBACKEND", "Agg")

import moments  # noqa: F401
import numpy as np
import pytest
import torch
import torchvision_shim  # noqa: F401  (before any test imports torchvision)
from hypothesis import settings

import octavo  # noqa: F401
from octavo.numerics.native import library
from octavo.runtimes.torch import native_layers

quantize = sys.modules["octavo.flow.quantize"]
search = sys.modules["octavo.searching.search"]
sensitivity = sys.modules["octavo.measuring.layers.sensitivity"]

# Collection imports what makes a million objects, all to stay: looking through them again and again
# takes a third of the time until the first test.
gc.disable()

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_finish() -> None:
    """From here on garbage is collected, of what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """Each test starts from the same seeds and gives back the number of threads it found."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_target(monkeypatch, request) -> None:
    """Without ``target=`` tests quantize for ``x86``, so that integers are the same on every CPU.

    A test with the mark ``own_target`` takes the target of the CPU at hand, as users do.
    """
    if request.node.get_closest_marker("own_target") is None:
        for module in (quantize, search, sensitivity):
            monkeypatch.setattr(module, "host_target", lambda: "x86")


@pytest.fixture(params=library.INSTRUCTION_SETS)
def instruction_set(request):
    """Each that this CPU has, one after the other, which Octavo's own kernels use meanwhile."""
    loaded = library.library()
    if loaded is None:
        pytest.skip("the kernels are not compiled here: make native")
    wanted, before = map(library.INSTRUCTION_SETS.index, (request.param, library.instruction_set()))
    try:
        if loaded.octavo_limit_isa(wanted) != wanted:
            pytest.skip("this CPU lacks it")
        yield request.param
    finally:
        loaded.octavo_limit_isa(before)


@pytest.fixture
def torchs_kernels(monkeypatch):
    """The ``torch`` runtime as it is where Octavo's own kernels run no layers."""
    monkeypatch.setattr(native_layers, "obstacle", lambda context: "torch's are tested")
