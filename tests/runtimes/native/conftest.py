"""AMX beside VNNI, on CPUs that have it and, acted out, on those that have VNNI alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo.numerics.native import library

NATIVE = Path(__file__).parents[3] / "native"
ACTED_OUT = pytest.param("amx, acted out", marks=pytest.mark.sweep)


@pytest.fixture(scope="session")
def acted_out_amx(tmp_path_factory):
    """A library in which memory and loops stand for AMX, see native/amx.h."""
    sys.path.append(str(NATIVE))
    from compile import compile_library, compiler

    if compiler() is None:
        pytest.skip("there is no C compiler")
    path = tmp_path_factory.mktemp("amx") / "kernels.so"
    problem = compile_library(path, "-DOCTAVO_ACT_OUT_AMX", "-O1")
    assert not problem, problem
    return path


@pytest.fixture(params=[ACTED_OUT])
def acted_out(request, acted_out_amx, monkeypatch):
    """What `instruction_set` yields, on CPUs without AMX too, if they have VNNI."""
    with monkeypatch.context() as patched:
        load(patched, acted_out_amx)
        if library.instruction_set() != "amx":
            pytest.skip("this CPU lacks VNNI, of which the kernels need the rest")
        yield request.param
    library.library.cache_clear()


@pytest.fixture(params=["amx", ACTED_OUT])
def by_vnni_and_amx(request, monkeypatch):
    """A function that calls another by VNNI and then by AMX: both results."""
    with monkeypatch.context() as patched:
        if request.param != "amx":
            load(patched, request.getfixturevalue("acted_out_amx"))
        loaded = library.library()
        if loaded is None:
            pytest.skip("the kernels are not compiled here: make native")
        before = library.INSTRUCTION_SETS.index(library.instruction_set())
        vnni, amx = map(library.INSTRUCTION_SETS.index, ("avx512_vnni", "amx"))
        if loaded.octavo_limit_isa(amx) != amx:
            pytest.skip("this CPU lacks it")

        def by_both(call):
            loaded.octavo_limit_isa(vnni)
            first = call()
            loaded.octavo_limit_isa(amx)
            return first, call()

        yield by_both
        loaded.octavo_limit_isa(before)
    if request.param != "amx":
        library.library.cache_clear()


def load(patched, path):
    patched.setattr(library, "PATH", path)
    patched.delenv(library.LIMIT, raising=False)
    library.library.cache_clear()
