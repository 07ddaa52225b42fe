"""The package around the code: what it needs, what it ships, what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution, entry_points, requires
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import octavo

ROOT = Path(__file__).parents[1]
CONTRIBUTOR = ("all", "dev")


def needs(name: str, extras: tuple[str, ...]) -> Iterator[Requirement]:
    """What a distribution asks for on this machine, with these extras."""
    for text in requires(name) or ():
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in (*extras, "")):
            yield need


def everything(name: str, extras: tuple[str, ...]) -> set[str]:
    """All that an installation of it brings, itself included."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    todo = [(canonicalize_name(name), extras)]
    while todo:
        entry = todo.pop()
        if entry not in found:
            found.add(entry)
            todo += [(canonicalize_name(n.name), tuple(sorted(n.extras))) for n in needs(*entry)]
    return {name for name, _ in found}


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


def test_users_need_five_packages() -> None:
    assert {n.name for n in needs("octavo", ())} == {
        "torch",
        "safetensors",
        "numpy",
        "rich",
        "typer",
    }


def test_what_contributors_install_is_pinned() -> None:
    missing = everything("octavo", CONTRIBUTOR) - pins().keys() - {"octavo"}
    assert not missing, f"constraints.txt has no pin for {sorted(missing)}"


@pytest.mark.parametrize("extras", [(), ("all",), ("dev",), ("benchmarks",)])
def test_pins_lie_in_the_ranges_users_get(extras: tuple[str, ...]) -> None:
    pinned = pins()
    for need in needs("octavo", extras):
        if need.name != "octavo":
            assert need.specifier.contains(pinned[canonicalize_name(need.name)]), need


def test_the_command_and_the_types_are_shipped() -> None:
    (command,) = entry_points(group="console_scripts", name="octavo")
    assert callable(command.load())
    assert files(octavo).joinpath("py.typed").is_file()


def test_the_version_is_told_once() -> None:
    version = distribution("octavo").version
    assert octavo.__version__ == version
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## (\[Unreleased\]|\[?{re.escape(version)})", changelog, re.MULTILINE)


def test_public_names_are_what_all_says() -> None:
    assert [name for name in octavo.__all__ if not hasattr(octavo, name)] == []
    assert len(set(octavo.__all__)) == len(octavo.__all__)


def test_importing_octavo_loads_nothing_heavy() -> None:
    heavy = "matplotlib sklearn onnx onnxruntime openvino torchvision torch._dynamo torch._inductor"
    program = (
        "import sys, torch; before = set(sys.modules); import octavo\n"
        "print(*sorted(set(sys.modules) - before))\n"
        "import octavo.reporting.plots, octavo.reporting.report\n"
        "print(*{'sklearn', 'matplotlib', 'jinja2', 'typer'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded, optional = done.stdout.splitlines()
    assert not set(heavy.split()) & set(loaded.split())
    assert optional == ""  # packages of reports, of the demo and of commands
