"""``octavo export``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json


def export(
    file: options.File,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="PATH", help="The .onnx or .pt2 file.")
    ],
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="Whose dialect of ONNX: onnxruntime or openvino. Both run both, each is quicker "
            "with its own.",
        ),
    ] = "onnxruntime",
    as_json: options.Json = False,
) -> None:
    """Write a file's model as ONNX, or compiled for this machine: a .pt2 package of torch.

    **Example:** `octavo export m.octavo --out m.onnx`
    """
    from pathlib import Path

    from octavo.model.files.atomic import require_file
    from octavo.model.loading import load
    from octavo.model.onnx_file import export_onnx
    from octavo.model.package import export_package

    require_file(out)
    model = load(file, runtime="reference")
    if Path(out).suffix == ".pt2":
        export_package(model, out)
    else:
        export_onnx(model, out, runtime=runtime)
    size = Path(out).stat().st_size
    if as_json:
        print_json({"file": out, "size_bytes": size})
        return
    console().print(f"{out}: {size / 1e6:.2f} MB", highlight=False)
