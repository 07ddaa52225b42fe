"""`rewrite`: one source file, its names moved. Needs the extra ``migrate``.

The syntax tree keeps every blank and comment, and scopes are resolved before a name is looked up:
an alias is followed to its import, and a local variable that has an old module's name is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.migrate.advice import ARGUMENTS, IN_PASSING, REMARKS, remark_on
from octavo.migrate.imports import moved_from, moved_import, reads_torch_unbound, with_imports
from octavo.migrate.places import Moved, Stays, canonical, module_of, place_of, within
from octavo.migrate.result import FileMigration, Note
from octavo.migrate.syntax import (
    MetadataWrapper,
    PositionProvider,
    QualifiedNameProvider,
    QualifiedNameSource,
    cst,
    dotted,
    full_name,
    module_name,
)

_A_MODULE = re.compile(r"(torch\.(ao\.)?quantization|torchao|tinynn\.graph)(\.\w+)*")


def rewrite(path: str, source: bytes) -> tuple[FileMigration, bytes]:
    """What becomes of a file, and its new bytes.

    Args:
        path: for the result; nothing is read or written there.
        source: its bytes, in the encoding that it declares.

    Returns:
        The change; a file that cannot be parsed has none, and a note that says so.
    """
    try:
        tree = cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        return _unread(path, error.raw_line, "syntax error", error.message), source
    except (UnicodeDecodeError, SyntaxError, LookupError) as error:
        return _unread(path, 1, "not readable as text", str(error)), source
    mover = _Mover()
    moved = MetadataWrapper(tree, unsafe_skip_copy=True).visit(mover)
    mover.settle_imports()
    if mover.torch_unbound and reads_torch_unbound(moved):
        mover.needed.add("torch")
    moved = with_imports(moved, sorted(mover.needed))
    kept = sorted(mover.kept, key=lambda note: note.line)
    remarks = list(mover.remarks.values())
    if kept or mover.found:
        remarks += mover.in_passing.values()
        remarks.sort(key=lambda note: note.line)
    else:
        remarks = []
    file = FileMigration(path, tree.code, moved.code, tuple(remarks), tuple(kept))
    return file, moved.bytes


def _unread(path: str, line: int, what: str, why: str) -> FileMigration:
    return FileMigration(path, "", "", kept=(Note(line, what, why.split("\n")[0]),))


class _Mover(cst.CSTTransformer):
    """Moves the names of a module, and collects what there is to say."""

    METADATA_DEPENDENCIES = (QualifiedNameProvider, PositionProvider)

    def __init__(self) -> None:
        super().__init__()
        self.found = False  # any name that is moved, or has been
        self.torch_unbound = False  # `import torch.quantization` bound `torch`, and is gone
        self.needed: set[str] = set()  # modules that the new text names in full
        self.kept: dict[Note, None] = {}
        self.remarks: dict[str, Note] = {}
        self.in_passing: dict[str, Note] = {}
        self._new: dict[cst.Attribute, tuple[cst.Attribute, str]] = {}
        self._uses: list[str] = []  # canonical names that cannot be moved
        self._kept_imports: list[tuple[str, Note, bool]] = []  # the last: of a whole module

    # Uses of names

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        chain = dotted(node)
        if chain is None:
            return True
        for full in self._names(node):
            self._remark(node, full)
            place = place_of(full)
            if isinstance(place, Stays):
                self._keep(node, full, place.reason)
                self._uses.append(canonical(full))
            elif isinstance(place, Moved):
                self.found = True
                self._spell_out(node, full, place)
            if place is not None:
                break
        self._keep_unbound(node, ".".join(chain))
        return False

    def _keep_unbound(self, node: cst.Attribute, name: str) -> None:
        """A name that is spelled as an old one, and whose first word nothing in the file binds."""
        bound = self.get_metadata(QualifiedNameProvider, node, set())
        if not bound and place_of(name) is not None:
            self._keep(node, name, f"nothing here binds {name.split('.')[0]!r}: import it")

    def leave_Attribute(
        self, original_node: cst.Attribute, updated_node: cst.Attribute
    ) -> cst.BaseExpression:
        if original_node not in self._new:
            return updated_node
        inner, text = self._new[original_node]
        new = cst.parse_expression(text).with_changes(lpar=inner.lpar, rpar=inner.rpar)
        return new if inner is updated_node else updated_node.deep_replace(inner, new)

    def visit_Call(self, node: cst.Call) -> None:
        for full in self._names(node.func):
            self._remark(node, full)
            place = place_of(full)
            if isinstance(place, Moved):
                self.found = True
                refused = ARGUMENTS.get(place.new.rpartition(".")[0], {})
                for argument in node.args:
                    name = argument.keyword.value if argument.keyword is not None else ""
                    if name in refused:
                        self._keep(argument, f"{full}({name}=)", refused[name])
                return

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        text = node.evaluated_value
        if isinstance(text, str) and _A_MODULE.fullmatch(text):
            self._keep(node, text, "a name inside a text is not moved: change it by hand")

    def _spell_out(self, node: cst.Attribute, full: str, place: Moved) -> None:
        """Give a use the new name, where the new imports alone do not."""
        chain = dotted(node) or []
        bound = ".".join(full.split(".")[: 1 - len(chain)])  # what the first word is bound to
        there = place_of(bound) if bound != chain[0] else None
        base = there.new + there.rest if isinstance(there, Moved) else bound
        if base + full[len(bound) :] == place.new + place.rest:
            return
        if place.new.startswith(f"{base}.") and bound != chain[0]:
            text = chain[0] + place.new[len(base) :]
        else:
            text = place.new
            self.needed.add(place.new if place.is_module else place.new.rpartition(".")[0])
        inner = node
        for _ in range(place.rest.count(".")):
            assert isinstance(inner.value, cst.Attribute)
            inner = inner.value
        self._new[node] = (inner, text)

    # Imports

    def visit_Import(self, node: cst.Import) -> bool:
        for alias in node.names:
            full = full_name(alias.name)
            place = place_of(full)
            if module_of(full) is not None:
                self.found = True
                self.torch_unbound |= alias.asname is None and full.startswith("torch.")
            elif isinstance(place, Stays):
                self._kept_imports.append((full, self._note(alias, full, place.reason), True))
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        module = module_name(node)
        if isinstance(node.names, cst.ImportStar):
            if module_of(module) is not None or isinstance(place_of(module), Stays):
                self._keep(node, f"{module}.*", "import * hides the names: import those in use")
            return False
        for alias in node.names:
            full = f"{module}.{full_name(alias.name)}"
            place = place_of(full)
            self.found |= isinstance(place, Moved)
            if isinstance(place, Stays):
                self._kept_imports.append((full, self._note(alias, full, place.reason), False))
        return False

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
        body = _moved(updated_node.body)
        if len(updated_node.body) == 1:
            first = updated_node.with_changes(body=body[:1])
            return cst.FlattenSentinel([first, *(cst.SimpleStatementLine([s]) for s in body[1:])])
        return updated_node.with_changes(body=body)

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.BaseSuite:
        return updated_node.with_changes(body=_moved(updated_node.body))

    def settle_imports(self) -> None:
        """Report an import that stays, unless what it is for is reported already."""
        for full, note, whole in self._kept_imports:
            if not any(within(use, canonical(full)) for use in self._uses):
                if whole:
                    text = "nothing here uses this import: take it out"
                    self.remarks[f"{text}{note.line}"] = Note(note.line, note.name, text)
                else:
                    self.kept[note] = None

    # Notes

    def _names(self, node: cst.CSTNode) -> list[str]:
        """The full names that an expression may have, of those that were imported."""
        if not isinstance(node, cst.Name | cst.Attribute) or dotted(node) is None:
            return []
        names = self.get_metadata(QualifiedNameProvider, node, set())
        return sorted(n.name for n in names if n.source is QualifiedNameSource.IMPORT)

    def _note(self, node: cst.CSTNode, name: str, text: str) -> Note:
        return Note(self.get_metadata(PositionProvider, node).start.line, name, text)

    def _keep(self, node: cst.CSTNode, name: str, text: str) -> None:
        self.kept[self._note(node, name, text)] = None

    def _remark(self, node: cst.CSTNode, full: str) -> None:
        """Say it at the first place only."""
        place = place_of(full)
        new = place.new if isinstance(place, Moved) else full
        for table, notes in ((REMARKS, self.remarks), (IN_PASSING, self.in_passing)):
            text = remark_on(new, table)
            if text is not None and text not in notes:
                notes[text] = self._note(node, full, text)


def _moved(body: Sequence[cst.BaseSmallStatement]) -> list[cst.BaseSmallStatement]:
    """The statements of a line, their imports moved."""
    found: list[cst.BaseSmallStatement] = []
    for statement in body:
        if isinstance(statement, cst.Import):
            found.append(moved_import(statement))
        elif isinstance(statement, cst.ImportFrom):
            found += moved_from(statement)
        else:
            found.append(statement)
    return found
