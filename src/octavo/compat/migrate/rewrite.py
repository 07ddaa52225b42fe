"""`rewrite`: one source file, its names moved. Needs the extra ``migrate``.

The syntax tree keeps every blank and comment, and scopes are resolved before a name is looked up:
an alias is followed to its import, and a local variable that has an old module's name is none.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Mapping, Sequence, Set

from octavo.compat.migrate.finder import Finder
from octavo.compat.migrate.imports import added_import, moved_from, moved_import
from octavo.compat.migrate.result import FileMigration, Note
from octavo.compat.migrate.syntax import MetadataWrapper, cst, respelled
from octavo.graph.quiet import quiet

_LONGEST_CHAIN = 1000  # of `and` and `or`, which Python's own tree holds side by side


def rewrite(path: str, source: bytes) -> tuple[FileMigration, bytes]:
    """What becomes of a file, and its new bytes.

    Args:
        path: for the result; nothing is read or written there.
        source: its bytes, in the encoding that it declares.

    Returns:
        The change; a file that cannot be parsed has none, and a note that says so.
    """
    try:
        with quiet():  # Python warns about what is written there
            return _rewritten(path, source)
    except (UnicodeDecodeError, LookupError) as error:
        return unread(path, 1, "not readable as text", str(error)), source
    except SyntaxError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        why = f"{error.msg} (read by Python {version})"
        return unread(path, error.lineno or 1, "syntax error", why), source
    except (RecursionError, MemoryError):
        why = "expressions or branches nest too deep to be read: change it by hand"
        return unread(path, 0, "cannot be read", why), source
    except Exception as error:  # noqa: BLE001  one file that libcst stumbles over is not the end
        return unread(path, 0, "cannot be read", f"{type(error).__name__}: {error}"), source


def unread(path: str, line: int, what: str, why: str) -> FileMigration:
    """What is said of a file that cannot be looked at."""
    return FileMigration(path, "", "", kept=(Note(line, what, why.split("\n")[0]),))


def _rewritten(path: str, source: bytes) -> tuple[FileMigration, bytes]:
    _check(source)
    tree = cst.parse_module(source)
    finder = Finder()
    MetadataWrapper(tree, unsafe_skip_copy=True).visit(finder)
    moved = tree.visit(_Mover(finder.spelled, finder.added))
    kept = sorted(finder.kept, key=lambda note: note.line)
    remarks = list(finder.remarks.values())
    if kept or finder.found:
        remarks += finder.in_passing.values()
        remarks.sort(key=lambda note: note.line)
    else:
        remarks = []
    # libcst drops a form feed that a file begins with, and the last line end if it is a CR.
    head, body, tail = source.partition(tree.bytes)
    if not body or (head + tail).strip():
        head, tail = b"", b""
    before, after = (f"{head.decode()}{text.code}{tail.decode()}" for text in (tree, moved))
    file = FileMigration(path, before, after, tuple(remarks), tuple(kept))
    return file, head + moved.bytes + tail


def _check(source: bytes) -> None:
    """Python's own parser goes first: libcst's knows no limit of nesting, and ends the process.

    Raises:
        UnicodeDecodeError, LookupError: it is not text in the encoding that it declares.
        SyntaxError: it is not Python.
        RecursionError, MemoryError: it nests too deep.
    """
    try:
        source.decode(tokenize.detect_encoding(io.BytesIO(source).readline)[0])
    except SyntaxError as error:  # of the declaration
        raise LookupError(error.msg) from None
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BoolOp) and len(node.values) > _LONGEST_CHAIN:
            raise RecursionError


class _Mover(cst.CSTTransformer):
    """Writes what was found: names, and import statements."""

    def __init__(
        self, spelled: Mapping[cst.Attribute, str], added: Mapping[cst.CSTNode, Set[str]]
    ) -> None:
        super().__init__()
        self._spelled = spelled
        self._added = added

    def leave_Attribute(
        self, original_node: cst.Attribute, updated_node: cst.Attribute
    ) -> cst.BaseExpression:
        name = self._spelled.get(original_node)
        return updated_node if name is None else respelled(updated_node, name)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        body = self._moved(original_node.body, updated_node.body)
        if len(original_node.body) > 1:
            return updated_node.with_changes(body=body)
        end = cst.TrailingWhitespace(newline=updated_node.trailing_whitespace.newline)
        more = (cst.SimpleStatementLine([one], trailing_whitespace=end) for one in body[1:])
        return cst.FlattenSentinel([updated_node.with_changes(body=body[:1]), *more])

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.BaseSuite:
        return updated_node.with_changes(body=self._moved(original_node.body, updated_node.body))

    def _moved(
        self, old: Sequence[cst.CSTNode], body: Sequence[cst.BaseSmallStatement]
    ) -> list[cst.BaseSmallStatement]:
        """The statements of a line, their imports moved, others added behind them."""
        statements: list[cst.BaseSmallStatement] = []
        for original, statement in zip(old, body, strict=True):
            if isinstance(statement, cst.Import):
                statements.append(moved_import(statement))
            elif isinstance(statement, cst.ImportFrom):
                statements += moved_from(statement)
            else:
                statements.append(statement)
            statements += map(added_import, sorted(self._added.get(original, ())))
        return statements
