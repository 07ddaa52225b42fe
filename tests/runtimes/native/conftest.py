"""Each test that asks for it runs under each instruction set that this CPU has."""

from __future__ import annotations

import pytest

from octavo.runtimes.native import library


@pytest.fixture(params=library.INSTRUCTION_SETS)
def instruction_set(request):
    """One of them, which the kernels use meanwhile."""
    loaded = library.library()
    if loaded is None:
        pytest.skip("the kernels are not compiled here: make native")
    wanted, before = library.INSTRUCTION_SETS.index(request.param), loaded.octavo_isa()
    try:
        if loaded.octavo_limit_isa(wanted) != wanted:
            pytest.skip("this CPU lacks it")
        yield request.param
    finally:
        loaded.octavo_limit_isa(before)
