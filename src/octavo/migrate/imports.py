"""Import statements: moved, split, added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.migrate.places import Moved, module_of, place_of
from octavo.migrate.syntax import code_of, cst, full_name, module_name


def moved_import(node: cst.Import) -> cst.Import:
    """``import`` of the modules that have taken the old ones' places; two may be one now."""
    names: list[cst.ImportAlias] = []
    for alias in node.names:
        new = module_of(full_name(alias.name))
        if new is not None:
            alias = alias.with_changes(name=cst.parse_expression(new))
        if alias.asname is not None or all(code_of(alias.name) != code_of(n.name) for n in names):
            names.append(alias)
    return node.with_changes(names=_with_commas(names, node.names))


def moved_from(node: cst.ImportFrom) -> list[cst.ImportFrom]:
    """One statement for each module that the names have gone to, or have stayed in."""
    old = module_name(node)
    if not old or isinstance(node.names, cst.ImportStar):
        return [node]
    groups: dict[str, list[cst.ImportAlias]] = {}
    for alias in node.names:
        name = full_name(alias.name)
        place = place_of(f"{old}.{name}")
        if not isinstance(place, Moved):
            groups.setdefault(old, []).append(alias)
            continue
        module, _, new = place.new.rpartition(".")
        if new != name:
            asname = alias.asname or cst.AsName(cst.Name(name))
            alias = alias.with_changes(name=cst.Name(new), asname=asname)
        groups.setdefault(module, []).append(alias)
    if list(groups) == [old]:
        return [node]
    found = []
    for module, names in groups.items():
        statement = node.with_changes(
            module=cst.parse_expression(module), names=_with_commas(names, node.names)
        )
        if len(groups) > 1 and "\n" not in code_of(statement):
            statement = statement.with_changes(lpar=None, rpar=None)
        found.append(statement)
    return found


def _with_commas(
    names: Sequence[cst.ImportAlias], before: Sequence[cst.ImportAlias]
) -> list[cst.ImportAlias]:
    """All names but the last have a comma; the last ends as the last one did before."""
    *others, last = names
    found = [
        alias if isinstance(alias.comma, cst.Comma) else alias.with_changes(comma=_COMMA)
        for alias in others
    ]
    return [*found, last.with_changes(comma=_end(last.comma, before[-1].comma))]


def _end(own: Any, before: Any) -> Any:
    """The line break of the last comma before, behind the comment of a name's own one."""
    if not _breaks(before):
        return own if _breaks(own) else before
    first = own.whitespace_after.first_line if _breaks(own) else cst.TrailingWhitespace()
    return before.with_changes(
        whitespace_after=before.whitespace_after.with_changes(first_line=first)
    )


def _breaks(comma: Any) -> bool:
    """Whether a line ends behind it; names without a comma have none of libcst's."""
    return isinstance(comma, cst.Comma) and isinstance(
        comma.whitespace_after, cst.ParenthesizedWhitespace
    )


_COMMA = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))


def reads_torch_unbound(tree: cst.Module) -> bool:
    """Whether a module reads the name ``torch``, and no import of it binds that name."""
    roots = _Roots()
    tree.visit(roots)
    return roots.reads and not roots.binds


class _Roots(cst.CSTVisitor):
    """Who uses the name ``torch``."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.binds = False

    def visit_Import(self, node: cst.Import) -> bool:
        self.binds |= any(_root(a) == "torch" and a.asname is None for a in node.names)
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        return False

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        node.value.visit(self)
        return False

    def visit_Name(self, node: cst.Name) -> None:
        self.reads |= node.value == "torch"


def with_imports(tree: cst.Module, modules: Sequence[str]) -> cst.Module:
    """Import these modules behind the first import of torch, or behind the first imports."""
    there = {
        full_name(alias.name)
        for statement in tree.body
        for alias in _imported_by(statement)
        if alias.asname is None
    }
    new = [cst.parse_statement(f"import {m}\n") for m in modules if m not in there]
    if not new:
        return tree
    body = list(tree.body)
    of_torch = (
        index + 1
        for index, statement in enumerate(body)
        if any(_root(alias) == "torch" for alias in _imported_by(statement))
    )
    place = next(of_torch, None) or _end_of_imports(body)
    return tree.with_changes(body=[*body[:place], *new, *body[place:]])


def _imported_by(statement: cst.CSTNode) -> list[cst.ImportAlias]:
    if not isinstance(statement, cst.SimpleStatementLine):
        return []
    return [a for part in statement.body if isinstance(part, cst.Import) for a in part.names]


def _root(alias: cst.ImportAlias) -> str:
    return full_name(alias.name).split(".")[0]


def _end_of_imports(body: Sequence[cst.CSTNode]) -> int:
    """Behind the docstring and the imports that follow it."""
    for index, statement in enumerate(body):
        first = statement.body[0] if isinstance(statement, cst.SimpleStatementLine) else None
        docstring = index == 0 and isinstance(first, cst.Expr)
        if not docstring and not isinstance(first, cst.Import | cst.ImportFrom):
            return index
    return len(body)
