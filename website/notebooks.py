"""Pages whose code runs, as notebooks to download: the same text and code, with what it printed."""

from __future__ import annotations

import json
import re
from typing import Any

from website.printed import BLOCK

# A link to another page: a notebook may lie anywhere.
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]+\)")


def notebook(page: str) -> str:
    """A page of Markdown as a notebook of version 4."""
    cells, end = [], 0
    for number, block in enumerate(BLOCK.finditer(page), 1):
        cells += _text(page[end : block.start()])
        cells.append(_code(block["code"], block["printed"], number))
        end = block.end()
    cells += _text(page[end:])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _text(text: str) -> list[dict[str, Any]]:
    source = _LINK.sub(r"\1", text.strip())
    return [{"cell_type": "markdown", "metadata": {}, "source": source}] if source else []


def _code(code: str, printed: str | None, number: int) -> dict[str, Any]:
    output = {"output_type": "stream", "name": "stdout", "text": printed}
    return {
        "cell_type": "code",
        "execution_count": number,
        "metadata": {},
        "outputs": [output] if printed else [],
        "source": code.rstrip("\n"),
    }
