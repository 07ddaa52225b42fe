"""Notebooks as pages: what their cells say, and what they printed and drew."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"


def pages() -> tuple[dict[str, str], dict[str, bytes]]:
    """The pages, and the pictures in them, by their paths."""
    texts: dict[str, str] = {}
    pictures: dict[str, bytes] = {}
    for path in sorted(FOLDER.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        parts = [_cell(cell, f"{path.stem}-{index}", pictures) for index, cell in enumerate(cells)]
        parts.insert(1, f"*This page is the notebook `notebooks/{path.name}`, as it ran.*")
        texts[f"tutorials/{path.stem}.md"] = "\n\n".join(parts)
    return texts, pictures


def _cell(cell: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return text
    shown = [_output(output, name, pictures) for output in cell.get("outputs", ())]
    return "\n\n".join([f"```python\n{text}\n```", *filter(None, shown)])


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        pictures[f"tutorials/{name}.png"] = base64.b64decode("".join(data["image/png"]))
        return f"![What the cell above draws]({name}.png)"
    if "text/html" in data:
        return "".join(data["text/html"])
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text and output.get("name") != "stderr" else ""
