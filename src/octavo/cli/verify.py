"""``octavo verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli.app import console, print_json
from octavo.cli.options import (
    DATA_HELP,
    BatchSize,
    Gray,
    ImageSize,
    JsonFlag,
    Mean,
    Std,
    image_options,
    takes_pixels,
)


def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .octavo file.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help=f"{DATA_HELP} [random inputs]"),
    ] = None,
    runtimes: Annotated[
        str | None,
        typer.Option("--runtimes", help="Runtimes, separated by commas [all that are installed]."),
    ] = None,
    batch_size: BatchSize = 64,
    image_size: ImageSize = 224,
    mean: Mean = None,
    std: Std = None,
    gray: Gray = False,
    as_json: JsonFlag = False,
) -> None:
    """Check that the runtimes agree with the oracle, layer by layer; exit code 1 if one does not.

    **Example:** `octavo verify m.octavo --data test.npz`
    """
    from octavo.cli.sources.data_source import load_data
    from octavo.measuring.parity import verify as verify_model
    from octavo.model.model import load

    q = load(file, runtime="reference")
    names = None if runtimes is None else [name.strip() for name in runtimes.split(",")]
    images = image_options(image_size, mean, std, gray, raw=takes_pixels(q))
    batches = None if data is None else load_data(data, q.signature, batch_size, images)
    found = verify_model(q, batches, runtimes=names)
    if as_json:
        print_json(found.to_dict())
    else:
        console().print(found)
    if not found.passed:
        raise typer.Exit(1)
