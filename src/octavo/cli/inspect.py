"""``octavo inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def inspect(
    file: options.File,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the decision about every tensor too.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what a file holds: layers, decisions, and where it came from.

    **Example:** `octavo inspect m.octavo --plan`
    """
    from octavo.model import parts_file
    from octavo.model.loading import load

    has_parts = parts_file.holds_parts(file)  # which says what is wrong with it
    size = Path(file).stat().st_size
    if has_parts:
        _show_parts(file, size, as_json)
        return
    q = load(file)
    if as_json:
        print_json(
            {
                "file": file,
                "size_bytes": size,
                "target": q.target,
                "provenance": q.provenance,
                "summary": q.summary().to_dict(),
                "plan": json.loads(q.plan.to_json()),
            }
        )
        return
    screen = console()
    screen.print(f"{file}: {size / 1e6:.2f} MB, target {q.target}", style="bold", highlight=False)
    screen.print(q.summary())
    if plan:
        screen.print(q.plan)


def _show_parts(file: str, size: int, as_json: bool) -> None:
    """What a file of parts holds; its layers run where there is a model."""
    from octavo.model.parts_file import read

    content = read(file)
    parts = content.described()
    if as_json:
        print_json({"file": file, "size_bytes": size, "model": content.model, "parts": parts})
        return
    screen = console()
    count = "1 quantized part" if len(parts) == 1 else f"{len(parts)} quantized parts"
    screen.print(
        f"{file}: {size / 1e6:.2f} MB, {count} of a {content.model}; "
        f"octavo.load({file!r}, into=model) puts them into the float model",
        style="bold",
        highlight=False,
    )
    for path, what in parts.items():
        screen.print(f"  {path}: {what}", highlight=False, markup=False)
