"""Read a ``.pt2`` file of ``torch.export.save``, after a look at what is in it.

``torch.export.load`` is made for files that one trusts: it unpickles what is marked as pickled,
loads compiled libraries, and evaluates expressions. A plain export needs none of that. So the file
is checked against what a plain export holds, and refused where it holds more. What was checked is
written to a new archive in memory, and torch reads that one: two readers of one archive need not
agree on what is in it. That keeps honest mistakes and known tricks out; it is not a proof, and the
help says so.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.errors import InputError
from octavo.graph.quiet import quiet
from octavo.model.files.source_file import check_file, reason

# All files of a plain export, below the archive's own folder: raw tensors and JSON.
_PLAIN_FILES = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+"
    r"|data/(weights/model_weights|constants/model_constants)_config\.json"
    r"|data/sample_inputs/model\.pt|models/model\.json"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+"
)
_OPERATORS = re.compile(r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_\w+|_operator\.[a-z]+|math\.\w+")
_NAME = re.compile(r"[\w.]*")
_SYMBOL = re.compile(r"[A-Za-z]\w*")
_FUNCTION_OR_SYMBOL = re.compile(r"[A-Z][A-Za-z]*|[a-z]+\d+")
_EXPRESSION_NODES = (
    ast.Expression,
    ast.Call,
    ast.keyword,
    ast.Load,
    ast.UnaryOp,
    ast.BinOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
)
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None}


def load_pt2(path: str | Path) -> nn.Module:
    """The module that ``torch.export.save`` wrote, in evaluation mode.

    Raises:
        InputError: the file cannot be read, or holds more than a plain export: pickled objects,
            compiled code, custom operators, or expressions beyond arithmetic.

    Example:
        >>> model = load_pt2("model.pt2")  # doctest: +SKIP
    """
    files = _read(Path(path))
    try:
        problem = next(_problems(files), None)
    except RecursionError:
        problem = "nests its JSON too deeply"
    if problem is not None:
        raise InputError(
            f"{path} is refused: it {problem}, and reading that can run code from the file. Export "
            "the model again without it; or, if you trust the file, give a function of your own "
            "as package.module:name that calls torch.export.load"
        )
    try:
        with quiet():
            module = torch.export.load(_archive(files)).module(check_guards=False)
    except Exception as error:
        raise InputError(
            f"torch.export.load cannot read {path}: {type(error).__name__}: {error}"
        ) from error
    # torch forbids eval() on such a module, since it cannot change the graph. Setting the flags is
    # all that evaluation needs here.
    vars(module).pop("train", None), vars(module).pop("eval", None)
    return module.eval()


def _read(path: Path) -> dict[str, Any]:
    """The archive's files, named below its folder: JSON as data, others as bytes.

    An archive that says one thing in two places is refused: a name twice, or two folders. So is one
    that unpacks to more bytes than it has, which could take any memory.
    """
    files: dict[str, Any] = {}
    try:
        check_file(path)
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise InputError(f"{path} is refused: it unpacks to more bytes than it has")
            folders = {entry.filename.partition("/")[0] for entry in entries}
            for entry in entries:
                name = entry.filename.partition("/")[2]
                if name in files or len(folders) > 1:
                    raise InputError(
                        f"{path} is refused: its entry {entry.filename[:80]!r} is there twice, or "
                        "in a second folder, which torch.export.save never writes"
                    )
                content = archive.read(entry)
                files[name] = json.loads(content) if name.endswith(".json") else content
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path} as a torch.export file: {reason(error)}") from error
    if "models/model.json" not in files:
        raise InputError(f"{path} is not a file of torch.export.save, or is cut off")
    return files


def _archive(files: Mapping[str, Any]) -> io.BytesIO:
    """An archive of these files, in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            written = content if isinstance(content, bytes) else json.dumps(content)
            archive.writestr(f"archive/{name}", written)
    buffer.seek(0)
    return buffer


def _problems(files: Mapping[str, Any]) -> Iterator[str]:
    """What a plain export does not hold."""
    strange = [name for name in files if not _PLAIN_FILES.fullmatch(name)]
    if strange:
        yield f"holds {strange[0][:80]!r}"
    for name, content in files.items():
        if name.endswith(".json"):
            yield from _json_problems(content)
        elif name.endswith(".pt"):
            yield from _pickle_problems(content)


def _pickle_problems(content: bytes) -> Iterator[str]:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # noqa: BLE001  whatever torch's strict reader stumbles over is one answer
        yield "holds pickled objects"


def _json_problems(tree: Any, key: str = "") -> Iterator[str]:
    """Strings that torch would evaluate, look up or write into source code, and should not."""
    if isinstance(tree, dict):
        if tree.get("use_pickle"):
            yield "holds pickled tensors"
        for name, value in tree.items():
            if name != "metadata":
                yield from _json_problems(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _json_problems(value, key)
    elif isinstance(tree, str) and key in _STRINGS and not _STRINGS[key](tree):
        yield f"has {tree[:80]!r} as {key}"


def _is_arithmetic(text: str) -> bool:
    """Numbers, operators, and calls of capitalised functions; text only as a symbol's name."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    named = [node.args[0] for node in nodes if isinstance(node, ast.Call) and _is_symbol(node)]
    return all(_is_plain_node(node, named) for node in nodes)


def _is_plain_node(node: ast.AST, named: list[ast.expr]) -> bool:
    if isinstance(node, ast.Name):
        return bool(_FUNCTION_OR_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float) or node in named
    return isinstance(node, _EXPRESSION_NODES)


def _is_symbol(call: ast.Call) -> bool:
    return (
        isinstance(call.func, ast.Name)
        and call.func.id == "Symbol"
        and len(call.args) == 1
        and isinstance(call.args[0], ast.Constant)
        and bool(_SYMBOL.fullmatch(str(call.args[0].value)))
    )


def _is_plain_structure(text: str) -> bool:
    """A pytree of tuples, lists and dicts, as JSON."""
    try:
        _, spec = json.loads(text)
        pending = [spec]
        while pending:
            spec = pending.pop()
            if spec["type"] not in _TREES:
                return False
            pending += spec["children_spec"]
    except (ValueError, TypeError, KeyError):
        return False
    return True


_STRINGS: dict[str, Callable[[str], object]] = {
    "expr_str": _is_arithmetic,
    "target": _OPERATORS.fullmatch,
    "name": _NAME.fullmatch,
    "as_name": _NAME.fullmatch,
    "forward_arg_names": str.isidentifier,
    "in_spec": _is_plain_structure,
    "out_spec": _is_plain_structure,
}
