"""``octavo export``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli.app import console


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .octavo file.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="ONNX", help="The .onnx file.")],
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="Whose dialect: onnxruntime or openvino. Both run both, each is quicker with its "
            "own.",
        ),
    ] = "onnxruntime",
) -> None:
    """Write a file's model as ONNX, with integer weights and quantize nodes.

    **Example:** `octavo export m.octavo --out m.onnx`
    """
    from pathlib import Path

    from octavo.model import load
    from octavo.onnx_file import export_onnx

    export_onnx(load(file, runtime="reference"), out, runtime=runtime)
    console().print(f"{out}: {Path(out).stat().st_size / 1e6:.2f} MB", highlight=False)
