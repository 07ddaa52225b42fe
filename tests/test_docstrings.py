"""Every public name says what it takes and what it refuses, and shows an example that runs.

In examples ``model`` is a trained float model, ``loader`` has batches of its images and labels,
``images`` is the first of them, ``q`` the quantized model, and ``llama`` a small language model,
also in the folder of that name, for which ``tokens`` are.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import functools
import importlib
import inspect
import re
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeping import swept
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import octavo
from website import reference

# What is public beside the names of `octavo` itself, as the reference has it.
MODULES = (
    *(f"octavo.{name}" for name in reference.MODULES),
    *(module for modules in reference.MORE.values() for module in modules),
)
TRAINERS = ("octavo.qat.lightning", "octavo.qat.transformers")  # seconds to import
# Objects that only functions of Octavo make: nobody calls these classes.
MADE = {"QuantizedModel", "QATModel"}
# Methods that all classes of a kind have, and what tells of them.
TOLD_OF = {
    **dict.fromkeys(("update", "merge", "bounds", "to_dict"), octavo.observers.Observer),
    "table": None,  # of `octavo.display.Result`: what is printed
    "range_of": None,  # the half of an observer's `bounds` that differs
    "extra_repr": None,  # of `torch.nn.Module`
}
# Their examples compile, search, or need a package that takes seconds to import.
SLOW = set(
    "bench search SearchResult export_package load_package quantize_folder read_checkpoint "
    "write_checkpoint Rotation QuantizedModel export_executorch ExecutorchFile export_tflite "
    "TfliteFile report Report sensitivity Sensitivity".split()
)


def public() -> Iterator[tuple[str, Any]]:
    """Functions and classes by their names; those of modules with the module's."""
    for name in octavo.__all__:
        if inspect.isroutine(getattr(octavo, name)) or inspect.isclass(getattr(octavo, name)):
            yield name, getattr(octavo, name)
    for path in sorted({*MODULES} - {*TRAINERS}):
        yield from inside(path)


def inside(path: str) -> Iterator[tuple[str, Any]]:
    """What a module has, and `octavo` itself has not."""
    module = module_of(path)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    ]
    for name in names:
        value = getattr(module, name)
        if (inspect.isroutine(value) or inspect.isclass(value)) and name not in octavo.__all__:
            yield f"{path}.{name}", value


def module_of(path: str) -> Any:
    name = path.removeprefix("octavo.")
    return getattr(octavo, name) if name in octavo.__all__ else importlib.import_module(path)


NAMES = [name for name, _ in public()]


@functools.cache
def found(name: str) -> Any:
    return dict(public() if name in NAMES else inside(name.rpartition(".")[0]))[name]


def section(text: str, title: str) -> str:
    """What stands indented below a title such as ``Args:``; empty where there is none."""
    match = re.search(rf"^{title}:\n((?:(?: {{4}}.*)?\n?)*)", text, re.MULTILINE)
    return match[1] if match else ""


def told_of(text: str) -> set[str]:
    """The parameters and attributes that a docstring tells of."""
    lines = section(text, "Args") + section(text, "Attributes")
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*):", lines, re.MULTILINE)
    like = re.findall(
        r"and so are\s+((?:``\w+``|,|and|\s)+)", lines
    )  # "as for f, and so are ``x``"
    return {name for entry in (*entries, *like) for name in re.findall(r"\b(?!and\b)\w+", entry)}


def parameters_of(value: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        p.name
        for p in inspect.signature(value).parameters.values()
        if p.name not in ("self", "cls") and p.kind not in kinds
    ]


def refuses(function: Any) -> bool:
    """Whether its own lines raise, or check arguments."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    raised = any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(tree))
    return raised or bool({"expect", "optional"} & called)


def lacking(name: str, value: Any) -> Iterator[str]:
    """What the docstrings of a public name leave out, a line each."""
    text = inspect.getdoc(value) if "__doc__" in vars(value) or inspect.isroutine(value) else None
    if not text:
        yield f"{name}: it has no docstring"
        return
    if inspect.isroutine(value):
        asked, checks = parameters_of(value), refuses(value)
    else:
        asked = [] if name in MADE or issubclass(value, BaseException) else _asked_of(value)
        checks = "__post_init__" in vars(value) and refuses(value.__post_init__)
    yield from (f"{name}: `{p}` is not told of" for p in asked if p not in told_of(text))
    if checks and not section(text, "Raises"):
        yield f"{name}: it raises, and does not say what"
    if ">>>" not in text and "." not in name:
        yield f"{name}: it shows no example"
    if inspect.isclass(value):
        yield from _lacking_methods(name, value)


def _asked_of(kind: type) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    own = "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False)
    return parameters_of(kind) if own else []


def _lacking_methods(name: str, kind: type) -> Iterator[str]:
    for method, value in vars(kind).items():
        function = getattr(value, "__func__", value)
        if method.startswith("_") or not (inspect.isfunction(function) or type(value) is property):
            continue
        text = inspect.getdoc(getattr(kind, method))  # a base's, if it has none of its own
        if not text and method not in TOLD_OF:
            yield f"{name}.{method}: it has no docstring"


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_told_of(name: str) -> None:
    assert list(lacking(name, found(name))) == []


def test_what_is_left_out_is_found() -> None:
    def half(one: int, two: int) -> None:
        """Of two.

        Args:
            one: a number.
        """
        raise ValueError

    assert list(lacking("half", half)) == [
        "half: `two` is not told of",
        "half: it raises, and does not say what",
        "half: it shows no example",
    ]


def test_a_docstring_is_read_by_its_sections() -> None:
    text = (
        "Does.\n\nArgs:\n    a: one.\n    b, c: two\n        lines: of it.\n\nRaises:\n    E: no."
    )
    assert told_of(text) == {"a", "b", "c"}
    assert section(text, "Raises") == "    E: no."
    assert section(text, "Returns") == ""


def examples(name: str) -> list[doctest.DocTest]:
    value = found(name)
    module = sys.modules[value.__module__]
    tests = doctest.DocTestFinder().find(value, name, module=module)
    return [test for test in tests if test.examples]


def test_no_example_is_skipped() -> None:
    tests = [test for name in NAMES for test in examples(name)]
    skipped = [
        test.name
        for test in tests
        if any(doctest.SKIP in example.options for example in test.examples)
    ]
    assert skipped == []
    assert len(tests) > 80


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What examples start from: a network that has learned real digits a little."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(digits.images[:256], dtype=torch.float32)[:, None] / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target[:256])), 64)
    torch.manual_seed(0)
    layers = OrderedDict(
        conv1=nn.Conv2d(1, 8, 3, padding=1),
        relu1=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        conv2=nn.Conv2d(8, 16, 3, padding=1),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc=nn.Linear(256, 10),
    )
    model = nn.Sequential(layers)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(4):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    q = octavo.quantize(model.eval(), calibration=loader, target="x86", progress=False)
    return {"model": model, "loader": loader, "images": images[:64], "q": q}


def language(folder: Path) -> dict[str, Any]:
    """A small language model, in a folder too."""
    import small_tokenizers

    llama = small_tokenizers.llama()
    small_tokenizers.saved(folder / "llama", llama)
    return {"llama": llama, "tokens": torch.arange(16)[None]}


@pytest.mark.parametrize("name", swept(NAMES, kept=set(NAMES) - SLOW))
def test_the_examples_of_a_public_name_run(
    name: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told_by_examples(name, names, tmp_path) == []


@pytest.mark.sweep
@pytest.mark.parametrize("path", TRAINERS)
def test_callbacks_of_trainers_are_told_of(
    path: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip(path.rpartition(".")[2])
    ((name, value),) = inside(path)
    assert list(lacking(name, value)) == []
    assert told_by_examples(name, names, tmp_path) == []


def test_the_example_of_the_package_runs(
    names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(octavo, "octavo")
    test.globs = dict(names)
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    assert told == []
    assert (tmp_path / "model.octavo").is_file()


def told_by_examples(name: str, names: dict[str, Any], folder: Path) -> list[str]:
    """What goes wrong in the examples of a name, each of which may tune a ``q`` of its own."""
    more = (
        {"octavo": octavo, "torch": torch, "nn": nn}
        | names
        | {"q": names["q"].lower("torch", check=False)}
    )
    tests = examples(name)
    if any("llama" in example.source for test in tests for example in test.examples):
        more |= language(folder)
    told: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        test.globs = vars(sys.modules[found(name).__module__]) | more
        runner.run(test, out=told.append)
    return told
