"""Import statements: moved, split, added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.compat.migrate.places import Moved, module_of, place_of
from octavo.compat.migrate.syntax import code_of, cst, full_name, module_name


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


def added_import(module: str) -> cst.Import:
    """``import module``."""
    name = cst.parse_expression(module)
    assert isinstance(name, cst.Name | cst.Attribute)
    return cst.Import([cst.ImportAlias(name)])


def imported_by(node: cst.CSTNode) -> set[str]:
    """The modules that statements of one line import under their own names, once they are moved."""
    statements = node.body if isinstance(node, cst.SimpleStatementLine) else (node,)
    return {
        module_of(full_name(alias.name)) or full_name(alias.name)
        for statement in statements
        if isinstance(statement, cst.Import)
        for alias in statement.names
        if alias.asname is None
    }


def binds_torch(node: cst.CSTNode) -> bool:
    """Whether a statement binds the name ``torch``, once its modules are moved."""
    return any(name.split(".")[0] == "torch" for name in imported_by(node))
