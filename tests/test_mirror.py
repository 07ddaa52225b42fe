"""Tests mirror the source: a module has a test of its name in the same place, or says where it is.

``src/octavo/graph/cuts.py`` is tested in ``tests/graph/test_cuts.py``, a package that holds code in
a test of its name inside or beside. Where several tests share a module, or a test several modules,
the module's docstring says so, or its package's for all in it::

    Tested in tests/runtimes/test_agreement.py.
    All of it is tested in tests/cli/test_cli.py and tests/cli/test_output.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ITS_OWN, OF_ALL = "Tested in", "All of it is tested in"


def problems(root: Path) -> Iterator[str]:
    """What is wrong below a folder with ``src/octavo`` and ``tests``, a line each."""
    source, tests = root / "src" / "octavo", root / "tests"
    for path in sorted(source.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = [*named(tree, ITS_OWN), *named(tree, OF_ALL)]
        yield from (f"{path}: there is no {test}" for test in told if not (root / test).is_file())
        expected = places_of(path.relative_to(source))
        if path != source / "__init__.py" and not (
            told
            or any((tests / test).is_file() for test in expected)
            or is_only_names(path, tree)
            or told_by_package(path)
        ):
            yield (
                f"{path}: write tests/{expected[0]}, or say in its docstring where it is tested: "
                '"Tested in tests/..."'
            )
    for test in sorted(tests.rglob("test_*.py")):
        if not (source / test.relative_to(tests).parent).is_dir():
            yield f"{test}: src/octavo has no folder of this name"


def named(tree: ast.Module, sentence: str) -> list[str]:
    """The tests that a docstring names in the sentence that begins so."""
    found = re.search(rf"{sentence} (tests/.+)", ast.get_docstring(tree) or "", re.DOTALL)
    return re.findall(r"tests/[\w/]+\.py", found[1]) if found else []


def told_by_package(path: Path) -> bool:
    beside = path.with_name("__init__.py")
    return bool(named(ast.parse(beside.read_text(encoding="utf-8")), OF_ALL))


def places_of(module: Path) -> list[Path]:
    """Where the tests of a module may be, from the folders ``src/octavo`` and ``tests`` on."""
    if module.name != "__init__.py":
        return [module.with_name(f"test_{module.name}")]
    package = module.parent
    name = f"test_{package.name}.py"
    return [package / name, package.parent / name]


def is_only_names(path: Path, tree: ast.Module) -> bool:
    """Whether it is a package that gathers names, and holds no code."""
    code = (ast.FunctionDef, ast.ClassDef)
    return path.name == "__init__.py" and not any(isinstance(node, code) for node in tree.body)


def test_every_module_has_its_test() -> None:
    assert list(problems(ROOT)) == []


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    files = {
        "src/octavo/__init__.py": "",
        "src/octavo/room/__init__.py": "def gather(): ...",
        "src/octavo/room/tested.py": "",
        "src/octavo/room/forgotten.py": '"""What it does."""',
        "src/octavo/room/told.py": '"""Tested in tests/room/test_tested.py,\nand tests/x.py."""',
        "src/octavo/part/__init__.py": '"""All of it is tested in tests/room/test_tested.py."""',
        "src/octavo/part/one.py": "",
        "src/octavo/some/__init__.py": '"""Tested in tests/room/test_tested.py."""',
        "src/octavo/some/one.py": "",
        "tests/room/test_tested.py": "",
        "tests/rooms/test_old.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [line.removeprefix(f"{tmp_path}/") for line in problems(tmp_path)]
    assert [line[: line.index(":")] for line in found] == [
        "src/octavo/room/__init__.py",
        "src/octavo/room/forgotten.py",
        "src/octavo/room/told.py",
        "src/octavo/some/one.py",
        "tests/rooms/test_old.py",
    ]
    assert "write tests/room/test_forgotten.py" in found[1]
    assert "there is no tests/x.py" in found[2]
