"""The house rules of src/octavo that a machine can hold, read off the syntax trees.

A room (a folder or a file right below ``octavo``) imports only rooms before it in ``ROOMS``.
Imports inside functions and under ``TYPE_CHECKING`` count like all others. ``octavo/__init__.py``
stands above the rooms and may import anything; nothing imports it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# Lowest first. Inside of a room modules may import each other, but for cycles.
ROOMS = tuple(
    "version display progress errors arguments numerics graph quantization qat runtimes model "
    "flow measuring searching reporting compat cli __main__".split()
)

# What src may import: the standard library, the core dependencies, and optional packages from the
# named modules alone, so that `import octavo` needs none of them.
CORE = {"torch", "safetensors", "numpy", "rich", "typer"}
OPTIONAL = {
    "matplotlib": {
        "octavo.reporting.plots.figure",
        "octavo.reporting.plots.drawing",
        "octavo.reporting.plots.svg",
    },
    "jinja2": {"octavo.reporting.html"},
    "sklearn": {"octavo.cli.demo.digits"},
    "torchvision": {"octavo.cli.demo.downloads"},
    "PIL": {"octavo.cli.sources.image_folder"},
    "pyarrow": {"octavo.cli.sources.columns"},
    "onnx": {"octavo.runtimes.onnx.writer", "octavo.model.language.graphs.onnx_graph"},
    "onnxruntime": {"octavo.runtimes.onnxruntime", "octavo.model.language.graphs.folders"},
    "openvino": {
        "octavo.runtimes.openvino",
        "octavo.model.language.graphs.openvino_graph",
        "octavo.model.language.graphs.folders",
    },
    "ai_edge_litert": {"octavo.runtimes.litert.package", "octavo.runtimes.litert.flatbuffer"},
    "flatbuffers": {"octavo.runtimes.litert.flatbuffer"},
    "executorch": {"octavo.runtimes.executorch.package"},
    "openvino_tokenizers": {"octavo.model.language.graphs.folders"},
    "ray": {"octavo.measuring.engines.ray"},
    "pandas": {"octavo.measuring.layers.error_table"},
    "lightning": {"octavo.qat.lightning"},
    "transformers": {
        "octavo.cli.sources.language_model",
        "octavo.model.language.int8_cache",
        "octavo.model.language.side_by_side",
        "octavo.model.language.kept_tokens",
        "octavo.model.language.gguf",
        "octavo.model.language.source_folder",
        "octavo.model.language.pretrained",
        "octavo.graph.records",
        "octavo.model.configuration",
        "octavo.qat.transformers",
    },
    "accelerate": {"octavo.model.language.source_folder"},
    "fastapi": {"octavo.cli.serving.app"},
    "starlette": {"octavo.cli.serving.app"},
    "pydantic": {"octavo.cli.serving.protocol"},
    "uvicorn": {"octavo.cli.serving.server"},
    "gguf": {"octavo.model.language.gguf"},
    "libcst": {"octavo.compat.migrate.syntax"},
}

# Dotted names that src neither imports nor spells out, and why.
FORBIDDEN = {
    "torch.ao": "it is being removed from torch",
    "torch.quantization": "it is being removed from torch",
    "torchao": "it is a peer; only benchmarks and tests use it",
    "torch.ops.quantized": "its kernels are being removed from torch",
    "torch.ops.quantized_decomposed": "it belongs to torch.ao",
    "torch.package": "it unpickles",
} | dict.fromkeys(("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), "it unpickles")

# What Python 3.10, on which Octavo runs, has not, so that no module imports it as it is imported.
NEWER = (
    "typing.LiteralString typing.Never typing.NotRequired typing.Required typing.Self "
    "typing.TypeVarTuple typing.Unpack typing.override enum.ReprEnum enum.StrEnum datetime.UTC "
    "tomllib".split()
)

# A module that spells one out all the same: ExecuTorch registers these itself, and has no others.
EXEMPT = {("octavo.runtimes.executorch.package", "torch.ops.quantized_decomposed")}

# The wall around `compat`: the rooms and modules that it may import, by their public names alone.
SEAMS = tuple(
    "version display progress errors numerics qat model.model model.nn model.files.atomic "
    "runtimes.cpu "
    "model.tflite_file "
    "flow.quantize flow.replacing "
    "graph.batches graph.calls graph.capture.capture graph.copying graph.graph graph.operators "
    "graph.passes graph.program graph.qdq graph.quiet graph.rewrite graph.weight_layouts "
    "quantization.calibrate quantization.convert quantization.plan quantization.qconfig "
    "quantization.targets quantization.weights".split()
)
# torch's own private names, and namedtuple's, that it cannot do without.
PRIVATE = set(
    "_modules _parameters _buffers _BatchNorm _NormBase _DropoutNd _IncompatibleKeys "
    "_replace".split()
)

RANKS = {name: rank for rank, name in enumerate(ROOMS)}


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, where it lies, its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def part(self) -> str:
        """Its room."""
        return self.name.split(".")[1] if "." in self.name else ""


def read_modules(source: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted((source / "octavo").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def imported_names(module: Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a module imports; ``from a import b`` gives ``a.b``."""
    is_package = module.path.name == "__init__.py"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.name.split(".") + ([""] if is_package else [])
                base = ".".join([*parents[: -node.level], *([base] if base else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            # import_module("name"), with a literal name
            function, name = _dotted(node.func), node.args[0]
            is_import = function.split(".")[-1] in ("import_module", "__import__")
            if is_import and isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def violations(source: Path) -> list[str]:
    """Every broken rule under ``source/octavo``, one line of text each."""
    modules = read_modules(source)
    found = [problem for module in modules.values() for problem in _in_module(module, modules)]
    compat = [module for module in modules.values() if module.part == "compat"]
    own = {name for module in compat for name in _own_names(module.tree)}
    found += [line for module in compat for line in _through_the_wall(module, modules, own)]
    found += [
        f"ROOMS in tests/test_layers.py names {part!r}, and src/octavo has no such room: "
        "take it out"
        for part in RANKS.keys() - {module.part for module in modules.values()}
    ]
    inner = {
        name: {target for _, full in imported_names(module) if (target := _ours(full, modules))}
        for name, module in modules.items()
        if name != "octavo"
    }
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        found.append(f"these modules import each other: {' -> '.join(reversed(error.args[1]))}")
    return found


def _in_module(module: Module, modules: dict[str, Module]) -> Iterator[str]:
    if module.path.name == "utils.py":
        yield f"{module.name}: no file is named utils.py; name it after its subject"
    elif module.part and module.part not in RANKS:
        yield (
            f"{module.name} stands in no room: move it into one, or add {module.part!r} to ROOMS, "
            "at the top of tests/test_layers.py, as early as its imports allow"
        )
    for line, full in imported_names(module):
        place = f"{module.name}:{line}"
        if full.endswith(".*"):
            yield f"{place}: import * hides where names come from"
        target = _ours(full, modules)
        if target is None:
            yield from _foreign(module, place, full)
        elif module.part:
            yield from _upward(module, place, modules[target])
    for node in module.tree.body:
        for name in sorted(set(_names_of(node)) & set(NEWER)):
            yield f"{module.name}:{node.lineno}: Python 3.10 has no {name}"
    for line, name, why in _spelled_out(module.tree):
        if (module.name, name) in EXEMPT:
            continue
        yield f"{module.name}:{line}: {name} is forbidden: {why}"


def _names_of(node: ast.stmt) -> Iterator[str]:
    """What a line imports, with its dotted names."""
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{one.name}" for one in node.names)


def _upward(module: Module, place: str, target: Module) -> Iterator[str]:
    mine, theirs = RANKS.get(module.part), RANKS.get(target.part)
    if not target.part:
        yield f"{place}: imports octavo itself; import from the module that defines the name"
    elif mine is not None and theirs is not None and theirs > mine:
        yield (
            f"{place}: imports {target.name}, upwards: {target.part} comes after {module.part} in "
            "ROOMS (tests/test_layers.py)"
        )


def _through_the_wall(module: Module, modules: dict[str, Module], own: set[str]) -> Iterator[str]:
    for line, full in imported_names(module):
        target, name = _ours(full, modules), full.rpartition(".")[2]
        if target is None or modules[target].part in ("", "compat"):
            continue
        if not any(f"{target}.".startswith(f"octavo.{seam}.") for seam in SEAMS):
            yield f"{module.name}:{line}: {target} is none of compat's SEAMS (tests/test_layers.py)"
        if _is_private(name):
            yield f"{module.name}:{line}: {full} is private: compat takes public names alone"
    attributes = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
    for node in attributes:
        if _is_private(node.attr) and node.attr not in own | PRIVATE:
            yield f"{module.name}:{node.lineno}: .{node.attr} is another room's private name"


def _own_names(tree: ast.Module) -> Iterator[str]:
    """The names of functions, fields and attributes of ``self``."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _foreign(module: Module, place: str, full: str) -> Iterator[str]:
    package = full.split(".")[0]
    why = _forbidden(full)
    if why:
        yield f"{place}: {full} is forbidden: {why}"
    elif package in OPTIONAL:
        if module.name not in OPTIONAL[package]:
            yield (
                f"{place}: {package} is optional; only {' and '.join(sorted(OPTIONAL[package]))} "
                "may import it (OPTIONAL in tests/test_layers.py)"
            )
    elif package not in CORE | sys.stdlib_module_names:
        yield f"{place}: {package} is no dependency of octavo (CORE in tests/test_layers.py)"


def _spelled_out(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Forbidden names used as attributes, and loads that unpickle."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name in FORBIDDEN:
                yield node.lineno, name, FORBIDDEN[name]
        elif isinstance(node, ast.Call):
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            if _dotted(node.func) == "torch.load" and not _is(options.get("weights_only"), True):
                yield node.lineno, "torch.load without weights_only=True", "it unpickles"
            if "allow_pickle" in options and not _is(options["allow_pickle"], False):
                yield node.lineno, "allow_pickle", "it unpickles"


def _forbidden(name: str) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[: count + 1]) for count in range(len(parts)))
    return next((FORBIDDEN[prefix] for prefix in prefixes if prefix in FORBIDDEN), None)


def _ours(full: str, modules: dict[str, Module]) -> str | None:
    """The module of octavo that an imported name leads to; None for another package's."""
    if full.split(".")[0] != "octavo":
        return None
    while full != "octavo" and full not in modules:
        full = full.rpartition(".")[0]
    return full


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_the_source_keeps_the_rules() -> None:
    problems = violations(SOURCE)
    assert not problems, "\n" + "\n".join(problems)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A source tree with one empty file for each room."""
    (tmp_path / "octavo").mkdir()
    (tmp_path / "octavo" / "__init__.py").touch()
    for part in RANKS:
        (tmp_path / "octavo" / f"{part}.py").touch()
    return tmp_path


def _write(house: Path, name: str, text: str) -> None:
    path = house / "octavo" / name
    if len(path.relative_to(house).parts) > 2:  # a folder replaces the file of its name
        room = house / "octavo" / path.relative_to(house).parts[1]
        room.with_suffix(".py").unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        (room / "__init__.py").touch()
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("quantization/plan.py", "from octavo.graph import Graph\nfrom octavo import errors"),
        ("graph/graph.py", "from octavo.numerics.dtypes import QDType"),
        ("__init__.py", "from octavo.cli import main\nfrom octavo.errors import OctavoError"),
        ("graph/passes/fold.py", "import octavo.graph\nimport torch.nn as nn, typing"),
        ("runtimes/openvino.py", "import openvino"),
        ("model/artifact.py", "import torch\ntorch.load('x', weights_only=True)\nx = y.pickle"),
        ("graph/capture.py", "from . import graph\nfrom .graph import Graph"),
        (
            "compat/a.py",
            "from octavo.errors import OctavoError\nfrom octavo.numerics.dtypes import QDType\n"
            "class A:\n    def __init__(self): self._own = 1\nx._own, x._buffers",
        ),
    ],
)
def test_what_the_rules_allow(house: Path, name: str, text: str) -> None:
    _write(house, name, text)
    assert violations(house) == []


# File -> what is written there -> what is said of it.
CAUGHT: dict[str, dict[str, str]] = {
    "numerics/a.py": {"from octavo.graph import Graph": "octavo.numerics.a:1: imports octavo."},
    "errors.py": {"\nfrom octavo import graph": "octavo.errors:2: imports octavo.graph, upwards"},
    "graph.py": {
        "import octavo.compat": "compat comes after graph in ROOMS",
        "from .model import Plan": "imports octavo.model",
        "from . import model": "imports octavo.model",
        "def f():\n    from octavo.model import Plan": "octavo.graph:2",
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from octavo.model import P": "octavo.graph:3: imports octavo.model",
        "import_module('octavo.model')": "imports octavo.model",
        "from octavo import __version__": "imports octavo itself",
        "from torch import *": "import *",
    },
    "graph/a.py": {"from ..model import Plan": "octavo.graph.a:1: imports octavo.model"},
    "graph/utils.py": {"": "no file is named utils.py"},
    "helpers.py": {"": "add 'helpers' to ROOMS"},
    "model.py": {
        "import torch.ao.quantization": "torch.ao.quantization is forbidden",
        "from torch import ao": "torch.ao is forbidden",
        "import torchao": "torchao is forbidden",
        "from torch.quantization import QConfig": "is being removed",
        "import torch\nf = torch.ops.quantized.linear": "octavo.model:2: torch.ops.qu",
        "import pickle": "pickle is forbidden: it unpickles",
        "torch.load('x')": "torch.load without weights_only",
        "torch.load('x', weights_only=False)": "torch.load without weights_only",
        "import_module('openvino')": "openvino is optional",
        "import polars": "polars is no dependency",
        "from typing import Any, Self": "Python 3.10 has no typing.Self",
    },
    "cli.py": {"np.load('x', allow_pickle=True)": "allow_pickle"},
    "runtimes/torch.py": {"import onnxruntime as ort": "onnxruntime is optional"},
    "compat/a.py": {
        "from octavo.searching import search": "octavo.searching is none of",
        "import octavo.quantization": "octavo.quantization is none of",
        "from octavo.errors import _words": "octavo.errors._words is private",
        "def f(graph): return graph._index": "._index is another room's",
    },
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in CAUGHT.items() for text in texts]
)
def test_what_the_rules_catch(house: Path, name: str, text: str) -> None:
    _write(house, name, text)
    problems = violations(house)
    assert len(problems) == 1, problems
    assert CAUGHT[name][text] in problems[0]


def test_a_cycle_inside_a_room_is_caught(house: Path) -> None:
    _write(house, "graph/a.py", "from octavo.graph.b import g")
    _write(house, "graph/b.py", "from octavo.graph import a")
    assert any("octavo.graph.a -> octavo.graph.b" in line for line in violations(house))


def test_a_room_that_is_not_there_is_caught(house: Path) -> None:
    (house / "octavo" / "model.py").unlink()
    assert any("names 'model'" in line for line in violations(house))


def test_the_listing_is_short() -> None:
    """A newcomer sees the architecture in the folder's listing."""
    entries = [path for path in (SOURCE / "octavo").iterdir() if path.name != "__pycache__"]
    folders = [path for path in entries if path.is_dir()]
    assert len(folders) <= 12
    assert len(entries) - len(folders) <= 8
