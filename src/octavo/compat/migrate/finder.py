"""`Finder`: the names of a module that have moved, and what there is to say about the others."""

from __future__ import annotations

import re

from octavo.compat.migrate.advice import ARGUMENTS, IN_PASSING, REMARKS, remark_on
from octavo.compat.migrate.imports import binds_torch, imported_by
from octavo.compat.migrate.places import Moved, Stays, canonical, module_of, place_of, within
from octavo.compat.migrate.result import Note
from octavo.compat.migrate.syntax import (
    ImportAssignment,
    ParentNodeProvider,
    PositionProvider,
    QualifiedNameProvider,
    QualifiedNameSource,
    ScopeProvider,
    cst,
    dotted,
    first_name,
    full_name,
    module_name,
)

_A_MODULE = re.compile(r"(torch\.(ao\.)?quantization|torchao|tinynn\.graph)(\.\w+)*")
_BY_HAND = "change it by hand"


class Finder(cst.CSTVisitor):
    """Looks at a module and changes nothing.

    Attributes:
        found: whether any name is to move, or has moved before.
        spelled: dotted names -> their new spelling.
        added: import statements -> modules to import behind them.
        kept, remarks, in_passing: what cannot be moved, what has a better call, and that of files
            that have something to move.
    """

    METADATA_DEPENDENCIES = (
        QualifiedNameProvider,
        PositionProvider,
        ParentNodeProvider,
        ScopeProvider,
    )

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self.spelled: dict[cst.Attribute, str] = {}
        self.added: dict[cst.CSTNode, set[str]] = {}
        self.kept: dict[Note, None] = {}
        self.remarks: dict[str, Note] = {}
        self.in_passing: dict[str, Note] = {}
        self._uses: list[str] = []  # canonical names that cannot be moved
        self._kept_imports: list[tuple[str, Note, bool]] = []  # the last: of a whole module
        self._moved_roots: list[cst.Import] = []  # `import torch.quantization`, which bind `torch`
        self._respelled: set[cst.CSTNode] = set()  # first words that are read no more

    # Uses of names

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        chain = dotted(node)
        if chain is None:
            return True
        names = self._names(node)
        places = [place_of(full) for full in names]
        for full, place in zip(names, places, strict=True):
            self._remark(node, full)
            if isinstance(place, Stays):
                self._keep(node, full, place.reason)
                self._uses.append(canonical(full))
            elif isinstance(place, Moved) and any(other != place for other in places):
                others = [name for name in names if name != full]
                self._keep(node, full, f"it may be {others[0]} as well: {_BY_HAND}")
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
            self._keep(node, text, f"a name inside a text is not moved: {_BY_HAND}")

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
            module = place.new if place.is_module else place.new.rpartition(".")[0]
            if not self._import(module, node, full, chain[0]):
                return
            self._respelled.add(first_name(node))
        inner = node
        for _ in range(place.rest.count(".")):
            assert isinstance(inner.value, cst.Attribute)
            inner = inner.value
        self.spelled[inner] = text

    def _import(self, module: str, node: cst.Attribute, full: str, word: str) -> bool:
        """Have a module imported behind each import of the word: in its guard, in its function."""
        scope = self.get_metadata(ScopeProvider, node)
        found = [a for a in scope[word] if isinstance(a, ImportAssignment)] if scope else []
        if any(self.get_metadata(ScopeProvider, a.node) is not a.scope for a in found):
            self._keep(node, full, f"a function imports {word!r} as a global name: {_BY_HAND}")
            return False
        for assignment in found:
            self.added.setdefault(assignment.node, set()).add(module)
        return True

    # Imports

    def visit_Import(self, node: cst.Import) -> bool:
        for alias in node.names:
            full = full_name(alias.name)
            place = place_of(full)
            if module_of(full) is not None:
                self.found = True
                if alias.asname is None and full.startswith("torch."):
                    self._moved_roots.append(node)
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

    def leave_Module(self, original_node: cst.Module) -> None:
        self._settle_imports()
        self._keep_torch_bound()
        self._add_once()

    def _settle_imports(self) -> None:
        """Report an import that stays, unless what it is for is reported already."""
        for full, note, whole in self._kept_imports:
            if not any(within(use, canonical(full)) for use in self._uses):
                if whole:
                    text = "nothing here uses this import: take it out"
                    self.remarks[f"{text}{note.line}"] = Note(note.line, note.name, text)
                else:
                    self.kept[note] = None

    def _keep_torch_bound(self) -> None:
        """Import torch where only an import that moves has bound it, and something reads it yet."""
        for node in self._moved_roots:
            scope = self.get_metadata(ScopeProvider, node)
            bound = [] if scope is None else list(scope["torch"])
            read = any(
                first_name(access.node) not in self._respelled
                for assignment in bound
                for access in assignment.references
            )
            if read and not any(
                isinstance(a, ImportAssignment) and binds_torch(a.node) for a in bound
            ):
                self.added.setdefault(node, set()).add("torch")

    def _add_once(self) -> None:
        """Import a module once in a block, and not where the block or the file imports it."""
        seen: dict[cst.CSTNode, set[str]] = {}
        for node in sorted(self.added, key=lambda node: self._line(node)):
            block = self._block(node)
            if block not in seen:
                seen[block] = {name for line in block.children for name in imported_by(line)}
            self.added[node] -= seen[block]
            seen[block] |= self.added[node]

    def _block(self, node: cst.CSTNode) -> cst.CSTNode:
        """What holds the line that a statement stands on."""
        parent = self.get_metadata(ParentNodeProvider, node)
        if isinstance(parent, cst.SimpleStatementLine):
            return self.get_metadata(ParentNodeProvider, parent)
        return parent

    # Notes

    def _names(self, node: cst.CSTNode) -> list[str]:
        """The full names that an expression may have, of those that were imported."""
        if not isinstance(node, cst.Name | cst.Attribute) or dotted(node) is None:
            return []
        names = self.get_metadata(QualifiedNameProvider, node, set())
        return sorted(n.name for n in names if n.source is QualifiedNameSource.IMPORT)

    def _line(self, node: cst.CSTNode) -> int:
        line: int = self.get_metadata(PositionProvider, node).start.line
        return line

    def _note(self, node: cst.CSTNode, name: str, text: str) -> Note:
        return Note(self._line(node), name, text)

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
