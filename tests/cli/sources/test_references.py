from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo.cli.sources.references import call_reference, is_reference, resolve_reference
from octavo.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module in it that nobody has imported."""
    (tmp_path / "my_references.py").write_text(
        "class Box:\n    value = 7\ndef fail():\n    raise ValueError('no luck')\n"
    )
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_references", "my_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_form() -> None:
    assert all(map(is_reference, ("a:b", "a.b.c:d.e")))
    others = ("model.pt2", "/tmp/a:b", "C:\\model.pt2", "a:", ":b", "a:b c")
    assert not any(map(is_reference, others))


def test_found_in_the_current_folder(folder: Path) -> None:
    assert resolve_reference("my_references:Box.value") == 7


def test_found_among_the_installed_packages() -> None:
    assert resolve_reference("torch.nn:Linear").__name__ == "Linear"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("my_references", "neither a file of a known kind nor of the form package.module:name"),
        ("nowhere_to_be_found:x", "cannot import nowhere_to_be_found: ModuleNotFoundError"),
        ("my_broken:x", "cannot import my_broken: .*not_installed_anywhere"),
        ("my_references:Bix", "my_references has no 'Bix'; did you mean Box?"),
        ("my_references:Box.values", "no 'Box.values'; did you mean value?"),
    ],
)
def test_what_cannot_be_resolved(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_reference(text)


def test_an_error_of_the_users_function_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match=r"m:fail\(\) failed: ValueError: no luck"):
        call_reference("m:fail", resolve_reference("my_references:fail"))
