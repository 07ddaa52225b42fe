"""``octavo export``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli import options
from octavo.cli.app import console, print_json

if TYPE_CHECKING:
    from octavo.model.model import QuantizedModel


def export(
    file: options.File,
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="PATH", help="The .onnx, .pt2, .pte or .tflite file."),
    ],
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="Whose dialect of ONNX: onnxruntime or openvino. Both run both, each is quicker "
            "with its own.",
        ),
    ] = "onnxruntime",
    full_integer: Annotated[
        bool,
        typer.Option(
            "--full-integer", help="A .tflite file that takes and gives integers, for boards."
        ),
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="FILE", help="The classes' names, a line each, for a .tflite file."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a file's model for others: ONNX, for phones a program of ExecuTorch (.pte), for phones
    and boards a LiteRT file (.tflite), or compiled for this machine, a .pt2 package of torch.

    **Example:** `octavo export m.octavo --out m.onnx`
    """
    from pathlib import Path

    from octavo.errors import InputError
    from octavo.model.files.atomic import require_file
    from octavo.model.loading import load
    from octavo.progress import waiting

    require_file(out)
    ending = Path(out).suffix.lower()
    for option, value in (("--full-integer", full_integer), ("--labels", labels)):
        if value and ending != ".tflite":
            raise InputError(f"{option} is for .tflite files, and {out} is none: leave it out")
    model = load(file, runtime="reference")
    with waiting(f"writing {out}", not as_json):
        if ending == ".tflite":
            written: Any = _tflite(model, out, full_integer, labels)
        else:
            written = _WRITERS.get(ending, _onnx)(model, out, runtime)
    size = Path(out).stat().st_size
    if as_json:
        more = {} if written is None else written.to_dict()
        print_json({"file": out, "size_bytes": size, **more})
        return
    console().print(f"{out}: {size / 1e6:.2f} MB", highlight=False)
    if written is not None:
        console().print(written.table())


def _onnx(model: QuantizedModel, out: str, runtime: str) -> None:
    from octavo.model.onnx_file import export_onnx

    export_onnx(model, out, runtime=runtime)


def _package(model: QuantizedModel, out: str, runtime: str) -> None:
    from octavo.model.package import export_package

    export_package(model, out)


def _tflite(model: QuantizedModel, out: str, full_integer: bool, labels: str | None) -> Any:
    from octavo.model.tflite_file import export_tflite

    names = None if labels is None else options.lines_of("--labels", labels)
    return export_tflite(model, out, full_integer=full_integer, labels=names)


def _executorch(model: QuantizedModel, out: str, runtime: str) -> Any:
    from octavo.model.executorch_file import export_executorch

    return export_executorch(model, out)


# Ending of the file -> what writes it, and what it says of it; ONNX for all others.
_WRITERS: Mapping[str, Callable[..., Any]] = {
    ".pt2": _package,
    ".pte": _executorch,
}
