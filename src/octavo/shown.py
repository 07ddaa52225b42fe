"""Text of files, paths and models on its way to a terminal, a table or a page.

A name may hold anything: escape sequences that write a terminal's title or clear it, marks that
turn the direction of writing, half characters that cannot be printed. Every text that is shown goes
through `plain`.
"""

from __future__ import annotations


def plain(text: str, keep: str = "") -> str:
    r"""The text with what cannot be printed spelled out, as `repr` does it.

    Args:
        text: any.
        keep: characters that stay all the same, such as line ends.

    Example:
        >>> print(plain("conv\x1b[2J"))
        conv\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()
