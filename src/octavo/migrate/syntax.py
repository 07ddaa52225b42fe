"""libcst, and what is asked of its trees. Needs the extra ``migrate``."""

from __future__ import annotations

from octavo.errors import MissingExtra

try:
    import libcst as cst
    from libcst.helpers import get_full_name_for_node
    from libcst.metadata import (
        MetadataWrapper,
        PositionProvider,
        QualifiedNameProvider,
        QualifiedNameSource,
    )
except ModuleNotFoundError as error:
    raise MissingExtra("libcst", "migrate", "read Python sources and keep their form") from error

__all__ = [
    "MetadataWrapper",
    "PositionProvider",
    "QualifiedNameProvider",
    "QualifiedNameSource",
    "code_of",
    "cst",
    "dotted",
    "full_name",
    "module_name",
]


def dotted(node: cst.BaseExpression) -> list[str] | None:
    """``["a", "b"]`` for the expression ``a.b``; ``None`` where there is more to it than names."""
    if isinstance(node, cst.Name):
        return [node.value]
    if isinstance(node, cst.Attribute):
        before = dotted(node.value)
        return None if before is None else [*before, node.attr.value]
    return None


def full_name(node: cst.BaseExpression) -> str:
    """``"a.b"`` for the expression ``a.b``."""
    return get_full_name_for_node(node) or ""


def module_name(node: cst.ImportFrom) -> str:
    """Empty for a relative import."""
    return "" if node.relative or node.module is None else full_name(node.module)


def code_of(node: cst.CSTNode) -> str:
    """Its text, with blanks and comments."""
    return cst.Module([]).code_for_node(node)
