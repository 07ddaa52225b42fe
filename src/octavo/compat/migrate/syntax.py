"""libcst, and what is asked of its trees. Needs the extra ``migrate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from octavo.errors import optional_import

with optional_import("libcst", "migrate", "read Python sources and keep their form"):
    import libcst as cst
    from libcst.helpers import get_full_name_for_node
    from libcst.metadata import (
        ImportAssignment,
        MetadataWrapper,
        ParentNodeProvider,
        PositionProvider,
        QualifiedNameProvider,
        QualifiedNameSource,
        Scope,
        ScopeProvider,
    )

__all__ = [
    "ImportAssignment",
    "MetadataWrapper",
    "ParentNodeProvider",
    "PositionProvider",
    "QualifiedNameProvider",
    "QualifiedNameSource",
    "Scope",
    "ScopeProvider",
    "code_of",
    "cst",
    "dotted",
    "first_name",
    "full_name",
    "module_name",
    "respelled",
]


def dotted(node: cst.BaseExpression) -> list[str] | None:
    """``["a", "b"]`` for the expression ``a.b``; ``None`` where there is more to it than names."""
    if isinstance(node, cst.Name):
        return [node.value]
    if isinstance(node, cst.Attribute):
        before = dotted(node.value)
        return None if before is None else [*before, node.attr.value]
    return None


def first_name(node: cst.CSTNode) -> cst.CSTNode:
    """The node of ``a`` in the expression ``a.b``."""
    while isinstance(node, cst.Attribute):
        node = node.value
    return node


def full_name(node: cst.BaseExpression) -> str:
    """``"a.b"`` for the expression ``a.b``."""
    return get_full_name_for_node(node) or ""


def module_name(node: cst.ImportFrom) -> str:
    """Empty for a relative import."""
    return "" if node.relative or node.module is None else full_name(node.module)


def code_of(node: cst.CSTNode) -> str:
    """Its text, with blanks and comments."""
    return cst.Module([]).code_for_node(node)


def respelled(node: cst.Attribute, name: str) -> cst.Attribute:
    """The dotted name in place of another one, with the line breaks and comments around its dots.

    The last dots of both are the same; comments of the first ones, if they are more, move on to the
    dot behind them.
    """
    old: list[cst.Dot] = []
    inner: cst.BaseExpression = node
    while isinstance(inner, cst.Attribute):
        old.insert(0, inner.dot)
        inner = inner.value
    first, *words = name.split(".")
    new = [cst.Dot()] * (len(words) - len(old)) + old[-len(words) :]
    stay = {comment for dot in new for comment in _comments(dot)}
    own = {*node.lpar, *node.rpar}
    inside = (c for child in node.children if child not in own for c in _comments(child))
    lost = [comment for comment in inside if comment not in stay]
    if lost:
        new[0] = _with_comments(new[0], lost)
    found: cst.BaseExpression = cst.Name(first)
    for word, dot in zip(words, new, strict=True):
        found = cst.Attribute(found, cst.Name(word), dot)
    lpar, rpar = node.lpar, node.rpar
    if lost and not lpar:
        lpar, rpar = [cst.LeftParen()], [cst.RightParen()]
    assert isinstance(found, cst.Attribute)
    return found.with_changes(lpar=lpar, rpar=rpar)


def _comments(node: cst.CSTNode) -> Iterator[cst.Comment]:
    if isinstance(node, cst.Comment):
        yield node
    for child in node.children:
        yield from _comments(child)


def _with_comments(dot: cst.Dot, comments: Sequence[cst.Comment]) -> cst.Dot:
    """The dot on a line of its own, below the comments."""
    lines = [cst.EmptyLine(comment=comment) for comment in comments]
    space = dot.whitespace_before
    if isinstance(space, cst.ParenthesizedWhitespace):
        space = space.with_changes(empty_lines=[*lines, *space.empty_lines])
    else:
        last = cst.ensure_type(space, cst.SimpleWhitespace)
        space = cst.ParenthesizedWhitespace(empty_lines=lines, last_line=last)
    return dot.with_changes(whitespace_before=space)
