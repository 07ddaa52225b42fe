from __future__ import annotations

import runpy
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from octavo.numerics.native import library


def test_no_file_is_no_library_and_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.load(tmp_path / "kernels.so") is None


def test_a_broken_file_is_ignored_with_one_warning(tmp_path):
    path = tmp_path / "kernels.so"
    path.write_bytes(b"\x7fELF and no more")
    with pytest.warns(
        octavo.OctavoWarning, match=r"kernels\.so is not the library .* Install"
    ) as w:
        assert library.load(path) is None
    assert len(w) == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("int other(void) { return 1; }", "octavo_abi"),
        ("int octavo_abi(void) { return 77; }", "its interface is 77, this version of Octavo"),
        (f"int octavo_abi(void) {{ return {library.ABI}; }}", "octavo_sources"),
    ],
)
def test_a_foreign_library_is_ignored_with_one_warning(tmp_path, source, problem):
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("there is no C compiler")
    path, text = tmp_path / "kernels.so", tmp_path / "foreign.c"
    text.write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", text, "-o", path], check=True)
    with pytest.warns(octavo.OctavoWarning, match=problem) as warned:
        assert library.load(path) is None
    assert len(warned) == 1


def test_a_library_of_other_sources_is_ignored_with_one_warning(tmp_path, monkeypatch):
    if library.library() is None:
        pytest.skip("the kernels are not compiled here")
    shutil.copytree(library.SOURCES, tmp_path / "native")
    monkeypatch.setattr(library, "SOURCES", tmp_path / "native")
    assert library.load(library.PATH) is not None
    with (tmp_path / "native" / "isa.c").open("a") as source:
        source.write("// changed")
    with pytest.warns(octavo.OctavoWarning, match="it was not compiled from what is in") as warned:
        assert library.load(library.PATH) is None
    assert len(warned) == 1


def test_make_native_replaces_a_file_that_cannot_be_loaded(tmp_path):
    """However new it is: that of another machine, in a checkout that both see."""
    script = Path(__file__).parents[3] / "native" / "compile.py"
    path = tmp_path / "kernels.so"
    path.write_bytes(b"\x7fELF and no more")
    assert not runpy.run_path(str(script))["is_new"](path)


@pytest.mark.skipif(not shutil.which("clang"), reason="there is no clang")
def test_clang_compiles_all_sources(tmp_path):
    """Who has no other compiler has its kernels by this one."""
    make = runpy.run_path(str(library.SOURCES / "compile.py"))
    options = [*make["LANGUAGE"], *make["SHARED"], *map(str, make["SOURCES"])]
    words = ["clang", *options, "-lm", "-o", str(tmp_path / "kernels.so")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 16, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    torch.manual_seed(0)
    return Last().eval()


def test_without_a_library_all_works_and_the_summary_says_what_a_compiler_brings(
    monkeypatch, recurrent
):
    monkeypatch.setattr(library, "library", lambda: None)
    x = torch.randn(3, 5, 8)
    q = octavo.quantize(recurrent, (x,), mode="dynamic", progress=False)
    assert q.summary().fallbacks == {"lstm.lstm": library.MISSING}
    assert "no kernels of Octavo's own, which run lstm on integers: with a C compiler" in str(
        q.summary()
    )
    assert torch.nn.functional.mse_loss(q(x), recurrent(x)) < 1e-4


def test_with_the_library_the_summary_names_the_kernel(recurrent):
    if library.obstacle():
        pytest.skip(library.obstacle())
    x = torch.randn(3, 5, 8)
    q = octavo.quantize(recurrent, (x,), mode="dynamic", progress=False)
    assert not q.summary().fallbacks
    assert not q.summary().note


@pytest.mark.parametrize("limit", ["portable", "avx2", "AVX2", "sse9"])
def test_the_environment_limits_the_instructions(monkeypatch, limit):
    loaded = library.library()
    if loaded is None:
        pytest.skip("the kernels are not compiled here")
    before = library.INSTRUCTION_SETS.index(library.instruction_set())
    monkeypatch.setenv(library.LIMIT, limit)
    library.library.cache_clear()
    try:
        if limit == "sse9":
            with pytest.warns(
                octavo.OctavoWarning, match="sse9 is ignored: it is none of portable"
            ):
                assert library.instruction_set() == library.INSTRUCTION_SETS[before]
        else:
            assert library.instruction_set() in ("portable", limit.lower())
            assert library.obstacle() == ""
    finally:
        loaded.octavo_limit_isa(before)
        library.library.cache_clear()
